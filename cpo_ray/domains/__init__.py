"""Worlds that pictures come from: what is asked for, how labels are read, what is scored."""

"""Annotated pictures on disk: import, validation, quarantine, random access and splits."""

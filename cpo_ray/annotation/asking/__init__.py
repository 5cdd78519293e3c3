"""Questions, answers, and the store of both."""

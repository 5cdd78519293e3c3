"""Questions, answers, and the store that keeps both."""

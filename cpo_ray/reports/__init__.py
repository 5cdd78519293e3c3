"""The kit for reports: HTML pages with their own style, charts and pictures that need no network."""

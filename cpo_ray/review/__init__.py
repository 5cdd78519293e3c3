"""Experts confirm or reject labels on a local page; the report says how far labels, reviewers and back ends can be trusted."""

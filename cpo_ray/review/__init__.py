"""Review of labels: experts confirm or reject them on a local page, and a report says how far labels, reviewers and back ends
agree.
"""

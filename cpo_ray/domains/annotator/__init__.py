"""The annotator as a domain: the agent that labelled the data reads generated pictures, too."""

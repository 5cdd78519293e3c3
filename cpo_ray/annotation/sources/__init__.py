"""Sources of pictures to annotate."""

"""Where pictures to annotate come from."""

"""Everything frozen, computed once: content-addressed shards, the expert that fills them, its actor pool, and the trainer's reader."""

"""Everything frozen, computed once: the store of target shards, the expert that fills them, its actor pool, the reader."""

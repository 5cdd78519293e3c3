"""Everything frozen, computed once: the store of target shards, the expert that fills it, its actor pool, the reader."""

"""The domain-expert agent: pictures and a hierarchy in, annotated shards out; every answered question is kept."""

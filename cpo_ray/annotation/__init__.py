"""Annotation of pictures by a back end: pictures and a hierarchy in, annotated shards out. Every answer is kept."""

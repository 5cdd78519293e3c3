"""The task that reads the pictures of a target shard. It has a file without torch, so that its processes start quickly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from cpo_ray.core.plan import Item
from cpo_ray.data.pairs import Losers
from cpo_ray.data.shards import AnnotatedDataset


def add_images(rows: pa.Table, folder: Path, losers: Losers | None) -> pa.Table:
    """Add the encoded pictures of the row's items, by random access to the annotated shards."""
    items = [Item(*item) for item in json.loads(rows["items"][0].as_py())]
    images = AnnotatedDataset.open(folder).images(pictures_of(items, losers))
    return rows.append_column("images", pa.array([images], pa.list_(pa.large_binary())))


def pictures_of(items: Sequence[Item], losers: Losers | None) -> list[str]:
    """Return the ids of the pictures of a shard: those of the items, and then, for pairs, the losers in the same order."""
    names = [item.sample_id for item in items]
    return names if losers is None else names + [losers[name] for name in names]

"""Count the annotated rows that a change of the hierarchy affects. Only the label columns of the Parquet files are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpo_ray.hierarchy.difference import Difference
from cpo_ray.hierarchy.tree import Hierarchy

COLUMNS = ("id", "prompt", "positive_ids", "negative_ids", "hierarchy_hash")


@dataclass
class Touched:
    """Counts of rows. `labels` counts, per effect, the rows with a label of each attribute; `rows` counts the rows with any."""

    total: int = 0
    foreign: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)


def touched(folder: Path, old: Hierarchy, new: Hierarchy, found: Difference) -> Touched:
    """Count over every Parquet file in `folder`.

    Rows annotated under another hierarchy than `old` count as `foreign` and nothing else. `rejected` lists (id, first sentence)
    for each row whose remaining labels, renamed if needed, are impossible under `new`. Raises ValueError if there is no Parquet
    file or a column is missing.
    """
    effects = {"removed": set(found.removed), "renamed": set(found.renamed)}
    now_called = {name: found.renamed.get(name, name) for name in old.attributes}
    for effect, changed in found.changed.items():
        effects[effect] = {name for name, new_name in now_called.items() if new_name in changed}
    counts = Touched(labels={effect: Counter() for effect in effects})
    for row in _rows(folder):
        counts.total += 1
        if row["hierarchy_hash"] != old.content_hash:
            counts.foreign += 1
            continue
        held = {*row["positive_ids"], *row["negative_ids"]}
        for effect, names in effects.items():
            counts.labels[effect].update(held & names)
            counts.rows[effect] += not held.isdisjoint(names)
        sentences = _problems(new, now_called, row)
        if sentences:
            counts.rejected.append((row["id"], sentences[0]))
    return counts


def told(folder: Path, old: Hierarchy, counts: Touched, found: Difference) -> Iterator[str]:
    """Yield the counts as lines for a terminal."""
    rows = counts.total - counts.foreign
    yield f"{folder}: {rows} rows annotated with {old.name} {old.version}"
    if counts.foreign:
        yield f"{counts.foreign} rows were annotated with another hierarchy and are not counted below"
    for effect, labels in counts.labels.items():
        if counts.rows[effect]:
            most = ", ".join(f"{name} in {count}" for name, count in labels.most_common(10))
            yield f"{effect}: touches {counts.rows[effect]} rows ({most}{', …' if len(labels) > 10 else ''})"
    if counts.rejected:
        name, sentence = counts.rejected[0]
        yield f"rejected by the new hierarchy: {len(counts.rejected)} rows, such as '{name}': {sentence}"
    if found.to_ask:
        yield f"to ask on all {rows} rows: {', '.join(found.to_ask)}"


def _problems(new: Hierarchy, now_called: Mapping[str, str], row: Mapping[str, Any]) -> list[str]:
    def kept(ids: Sequence[str], sign: str) -> list[str]:
        names = [now_called.get(name, name) for name in ids]
        # Labels whose attribute or pole was removed are counted as removed; only the remaining ones can be impossible.
        return [name for name in names if name in new.attributes and f"{sign}{name}" in new.attributes[name].poles]

    return new.problems(kept(row["positive_ids"], "+"), kept(row["negative_ids"], "-"), row["prompt"])


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq  # only this function needs Arrow, which is slow to import

    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"There is no Parquet file in {folder}: give a folder of annotated shards.")
    for path in files:
        with pq.ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path} has no column {', '.join(missing)}: it is not an annotated shard.")
            for batch in file.iter_batches(columns=list(COLUMNS)):
                yield from batch.to_pylist()

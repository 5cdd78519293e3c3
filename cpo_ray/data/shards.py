"""Annotated shards: Parquet files of `schema.ANNOTATED` that appear all together or not at all, with random access to rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.core.files import disk_full_in, sync
from cpo_ray.core.prompts import Labels
from cpo_ray.core.schema import ANNOTATED
from cpo_ray.core.splits import Split, split_of
from cpo_ray.hierarchy import Hierarchy

SHARDS = "annotated-*.parquet"
# Encoded pictures do not compress further, and statistics or a dictionary would hold whole copies of them.
_SMALL = [name for name in ANNOTATED.names if name != "image"]
_COMPRESSION = {name: "none" if name == "image" else "zstd" for name in ANNOTATED.names}
#: Columns that older shards do not have.
_NEWER = {"split"}

Stage = Callable[[str], Path]


class DataError(ValueError):
    """A data set cannot be read or written; one sentence says where and what to do."""


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """Write files that appear in `folder` together when the block ends, or not at all if it fails.

    The yielded function returns the path for writing the file with a given name. Files get their final names in reverse order, so
    if the first one exists, all exist, and an interruption between two renames is noticed. Raises DataError if the folder already
    holds annotated shards, or the disk is full.
    """
    if any(folder.glob(SHARDS)):
        raise DataError(f"{folder} already holds annotated shards; delete them or choose another folder")
    names: list[str] = []

    def stage(name: str) -> Path:
        names.append(name)
        return folder / f".{name}.partial"

    with disk_full_in(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield stage
            for name in reversed(names):
                sync(folder / f".{name}.partial")
                os.replace(folder / f".{name}.partial", folder / name)
        finally:
            for name in names:
                (folder / f".{name}.partial").unlink(missing_ok=True)


def write_shards(rows: Iterable[Mapping[str, Any]], folder: Path, rows_per_shard: int = 512, row_group_size: int = 16) -> int:
    """Write rows of `schema.ANNOTATED` as `annotated-00000.parquet` … and return their number; see `staged`."""
    with staged(folder) as stage:
        return stage_shards(rows, stage, rows_per_shard, row_group_size)


def stage_shards(rows: Iterable[Mapping[str, Any]], stage: Stage, rows_per_shard: int = 512, row_group_size: int = 16) -> int:
    """Write shards within a `staged` block that writes other files, too. Memory holds one row group."""
    groups = _pieces(rows, row_group_size)
    count = shards = 0
    group = next(groups, None)
    while group:
        # The file is opened here and not by Arrow, so that a full disk arrives as Python's own OSError.
        with open(stage(f"annotated-{shards:05d}.parquet"), "wb") as file, _writer(file) as writer:
            written = 0
            while group and written < rows_per_shard:
                writer.write_table(pa.Table.from_pylist(group, schema=ANNOTATED), row_group_size=row_group_size)
                written += len(group)
                group = next(groups, None)
        count += written
        shards += 1
    return count


def _writer(file: Any) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, ANNOTATED, compression=_COMPRESSION, use_dictionary=_SMALL, write_statistics=_SMALL)


def _pieces(rows: Iterable[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    piece: list[Mapping[str, Any]] = []
    for row in rows:
        piece.append(row)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece


class _Place(NamedTuple):
    shard: Path
    row_group: int
    row: int


@dataclass(frozen=True, eq=False)
class AnnotatedDataset:
    """A folder of annotated shards. Ids, labels and sizes are in memory, images on disk; it can be pickled."""

    folder: Path
    hierarchy_hash: str
    _labels: dict[str, Labels] = field(repr=False)
    _sizes: dict[str, tuple[int, int]] = field(repr=False)
    _places: dict[str, _Place] = field(repr=False)
    published: dict[str, Split] = field(repr=False)
    """Id → the split that its source has put it into, of those that have one."""

    @classmethod
    def open(cls, folder: Path | str) -> AnnotatedDataset:
        """Read everything but the images.

        Raises DataError for a missing folder, missing or damaged shards, a column that differs from `schema.ANNOTATED`, no rows,
        a repeated id, an unknown split, or rows of different hierarchies.
        """
        folder = Path(folder)
        labels: dict[str, Labels] = {}
        sizes: dict[str, tuple[int, int]] = {}
        places: dict[str, _Place] = {}
        published: dict[str, Split] = {}
        hashes: set[str] = set()
        for shard in _shards(folder):
            for row, place in _rows(shard):
                name = row["id"]
                if name in labels:
                    raise DataError(
                        f"id {name!r} is in {places[name].shard} and again in {shard}; ids must be unique in a data set"
                    )
                labels[name] = Labels(row["prompt"], tuple(row["positive_ids"]), tuple(row["negative_ids"]))
                sizes[name] = (row["width"], row["height"])
                places[name] = place
                hashes.add(row["hierarchy_hash"])
                if (split := row.get("split")) is not None:
                    if split not in get_args(Split):
                        known = ", ".join(get_args(Split))
                        raise DataError(f"the split of {name!r} in {shard} is {split!r} and none of {known}; import again")
                    published[name] = split
        if not labels:
            raise DataError(f"the shards in {folder} hold no pictures; import some")
        if len(hashes) > 1:
            raise DataError(
                f"the shards in {folder} were annotated with {len(hashes)} different hierarchies; import again with one"
            )
        return cls(folder, hashes.pop(), labels, sizes, places, published)

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, in the order of the shards."""
        return tuple(self._labels)

    def labels(self, sample_id: str) -> Labels:
        """Return the prompt and attribute ids of one picture. Raises DataError for an unknown id."""
        self._check((sample_id,))
        return self._labels[sample_id]

    def size(self, sample_id: str) -> tuple[int, int]:
        """Return (width, height) in pixels of one decoded picture. Raises DataError for an unknown id."""
        self._check((sample_id,))
        return self._sizes[sample_id]

    def split(self, name: Split) -> tuple[str, ...]:
        """Return the ids of one split: the published one, and `plan.split_of` for pictures without."""
        assert name in get_args(Split), f"no split is named {name!r}"
        return tuple(each for each in self._labels if (self.published.get(each) or split_of(each)) == name)

    def lacking(self) -> list[str]:
        """Return what is used instead of each published split that is empty, as one sentence each."""
        uses: dict[Split, str] = {"validation": "held-out losses and the choice of a sweep", "test": "the evaluation"}
        lacking = [(split, use) for split, use in uses.items() if self.published and not self.split(split)]
        return [f"there is no {split} picture; {use} will use pictures or prompts of training" for split, use in lacking]

    def images(self, ids: Sequence[str]) -> list[bytes]:
        """Return the encoded images, in the order of `ids`. Only the row groups that hold them are read, each once.

        Raises DataError for an unknown id.
        """
        self._check(ids)
        groups: dict[tuple[Path, int], set[int]] = {}
        for sample_id in ids:
            shard, group, row = self._places[sample_id]
            groups.setdefault((shard, group), set()).add(row)
        found: dict[_Place, bytes] = {}
        for (shard, group), rows in groups.items():
            with pq.ParquetFile(shard) as file:
                column = file.read_row_group(group, columns=["image"])["image"]
            found |= {_Place(shard, group, row): column[row].as_py() for row in rows}
        return [found[self._places[sample_id]] for sample_id in ids]

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over ids, labels and image bytes, independent of shards and order. The first use reads every
        image once.
        """
        digests: dict[_Place, str] = {}
        for shard, group in dict.fromkeys((place.shard, place.row_group) for place in self._places.values()):
            with pq.ParquetFile(shard) as file:
                column = file.read_row_group(group, columns=["image"])["image"]
            for row, image in enumerate(column):
                digests[_Place(shard, group, row)] = hashlib.blake2b(image.as_buffer(), digest_size=16).hexdigest()
        whole = hashlib.blake2b(digest_size=16)
        for name in sorted(self._labels):
            labels = self._labels[name]
            whole.update(
                json.dumps([name, labels.prompt, labels.positive_ids, labels.negative_ids, digests[self._places[name]]]).encode()
            )
        return whole.hexdigest()

    def check_hierarchy(self, tree: Hierarchy) -> None:
        """Raise DataError if the annotations refer to another hierarchy than `tree`."""
        if self.hierarchy_hash != tree.content_hash:
            raise DataError(
                f"the shards in {self.folder} were annotated with hierarchy {self.hierarchy_hash} and not with {tree.name!r} "
                f"({tree.content_hash}); give the hierarchy they were made with, or import again"
            )

    def _check(self, ids: Iterable[str]) -> None:
        unknown = [sample_id for sample_id in ids if sample_id not in self._labels]
        if unknown:
            raise DataError(f"{len(unknown)} ids, such as {unknown[0]!r}, are not among the {len(self._labels)} of {self.folder}")


def _shards(folder: Path) -> list[Path]:
    """Return the shard files in order. Their numbers must have no gap."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; import pictures into it first")
    shards = sorted(folder.glob(SHARDS))
    if not shards:
        raise DataError(f"there are no annotated shards ({SHARDS}) in {folder}; import pictures into it first")
    for number, shard in enumerate(shards):
        expected = folder / f"annotated-{number:05d}.parquet"
        if shard != expected:
            raise DataError(f"{expected} is missing, so an import was interrupted; delete the shards beside it and import again")
    return shards


def _rows(shard: Path) -> Iterator[tuple[dict[str, Any], _Place]]:
    """Yield the rows of a shard without their images, each with its place."""
    try:
        with pq.ParquetFile(shard) as file:
            _check_schema(shard, file.schema_arrow)
            for group in range(file.num_row_groups):
                columns = [name for name in _SMALL if name in file.schema_arrow.names]
                for row, values in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                    yield values, _Place(shard, group, row)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{shard} cannot be read as Parquet ({str(error).rstrip('.')}); import again") from None


def _check_schema(shard: Path, found: pa.Schema) -> None:
    for expected in ANNOTATED:
        if expected.name not in found.names:
            if expected.name in _NEWER:
                continue
            raise DataError(f"{shard} has no column {expected.name!r}; annotated shards have {', '.join(ANNOTATED.names)}")
        column = found.field(expected.name)
        if not column.equals(expected):
            raise DataError(f"column {column.name!r} of {shard} is {_kind(column)}, expected {_kind(expected)}; import again")


def _kind(column: pa.Field) -> str:
    return f"{'nullable' if column.nullable else 'required'} {column.type}"

"""Read the bytes of pictures and the rows of tables from files of others, in bounded memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cpo_ray.data.picture import MAX_BYTES, PictureError

#: A row group may unpack to this many bytes, or to this many times its size on disk, whichever is more. Pictures hardly compress.
MOST_UNPACKED, MOST_RATIO = 2**28, 20
#: Bytes of the longest text that may be a prompt.
MOST_TEXT = 2**16
_ROWS = 1024


class TableError(ValueError):
    """A Parquet file, or a row group of it, cannot be read safely; the message is one clause that says why."""


@dataclass(frozen=True)
class Extent:
    """Where the bytes of a picture lie: `length` bytes from `start` in `file`, or with a `column` row `length` of row group
    `start`.
    """

    file: str
    start: int
    length: int
    column: str = ""


def read(extents: Iterable[Extent]) -> Iterator[bytes | PictureError]:
    """Yield the bytes of each picture, in order, or why they cannot be read. Neighbours in a row group are read together."""
    place, group = ("", -1, ""), None
    for extent in extents:
        try:
            if not extent.column:
                yield _range(extent)
                continue
            if place != (extent.file, extent.start, extent.column):
                with open_table(Path(extent.file), [extent.column]) as file:
                    group = _group(file, extent.start, [extent.column]).column(0)
                place = (extent.file, extent.start, extent.column)
            assert group is not None
            yield _cell(group[extent.length].as_py())
        except PictureError as error:
            yield error
        except OSError as error:
            yield PictureError(f"the picture cannot be read: {error.strerror or error}")
        except Exception as error:  # Arrow raises any exception, and one file must not end the work on all others
            yield PictureError(f"the picture cannot be read: {error}")


def _range(extent: Extent) -> bytes:
    if extent.length > MAX_BYTES:
        raise PictureError(f"the image file is larger than {MAX_BYTES // 2**20} MiB; save it smaller")
    # Whatever has taken the file's place since it was listed, opening it does not wait, as opening a pipe would.
    descriptor = os.open(extent.file, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PictureError(f"{extent.file} is no plain file any more; copy it anew")
        file.seek(extent.start)
        data = file.read(extent.length)
    if len(data) < extent.length:
        raise PictureError(f"{Path(extent.file).name} ends after {len(data)} of {extent.length} bytes; copy it anew")
    return data


def _cell(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise PictureError("the row holds no image bytes")
    return value


def open_table(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Open a Parquet file for reading some of its columns; repeated values of these are held once.

    Raises TableError if the file claims more values than it has bytes.
    """
    with pq.ParquetFile(path) as file:
        leaves = [file.schema.column(number) for number in range(len(file.schema))]
        metadata, size = file.metadata, path.stat().st_size
    wanted = [leaf for leaf in leaves if leaf.path.split(".")[0] in columns]
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    most = max((group.column(leaf).num_values for group in groups for leaf in range(group.num_columns)), default=0)
    if max(most, metadata.num_rows) > size:
        raise TableError(f"it claims {max(most, metadata.num_rows):,} values in {size:,} bytes")
    texts = [leaf.path for leaf in wanted if leaf.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(path, read_dictionary=texts)


def table_rows(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one row group of an open table. Equal texts are one object, so that repeating them takes no memory.

    Raises TableError if the group would unpack to far more than it should.
    """
    if not columns:
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    table, texts = _group(file, group, columns), dict[str, str]()
    long = any(_longest(chunk) > MOST_TEXT for column in table.columns for chunk in column.chunks)
    at_once = 1 if long else _ROWS
    for start in range(0, table.num_rows, at_once):
        for row in table.slice(start, at_once).to_pylist():
            short = {name: cell for name, cell in row.items() if isinstance(cell, str) and len(cell) <= MOST_TEXT}
            yield row | {name: texts.setdefault(cell, cell) for name, cell in short.items()}


def _longest(array: Any) -> int:
    """Return the bytes of the longest text in an array of any form."""
    if pa.types.is_dictionary(array.type):
        return int(pc.max(pc.binary_length(array.dictionary)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return max(map(_longest, array.flatten()), default=0)
    return _longest(array.values) if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) else 0


def _group(file: pq.ParquetFile, number: int, columns: Sequence[str]) -> Any:
    group = file.metadata.row_group(number)
    for leaf in map(group.column, range(group.num_columns)):
        unpacked, packed = leaf.total_uncompressed_size, leaf.total_compressed_size
        if leaf.path_in_schema.split(".")[0] in columns and unpacked > max(MOST_UNPACKED, MOST_RATIO * packed):
            raise TableError(f"column {leaf.path_in_schema!r} would unpack from {packed:,} to {unpacked:,} bytes")
    return file.read_row_group(number, columns=list(columns))

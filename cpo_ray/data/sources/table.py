"""Read the rows of Parquet files of others in bounded memory. What a file says of its sizes is compared with its pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

#: A row group may unpack to this many bytes, or to this many times its size on disk, whichever is more. Pictures hardly compress.
MOST_UNPACKED, MOST_RATIO = 2**28, 20
#: Bytes of the longest text that may be a prompt.
MOST_TEXT = 2**16
_ROWS = 1024
#: The encoding in which a value may repeat the one before it, so that a few bytes unpack without bound.
_DELTA_BYTE_ARRAY = 7


class TableError(ValueError):
    """A Parquet file, or a row group of it, cannot be read safely; the message is one clause that says why."""


class Table:
    """Some columns of a Parquet file, open for reading; repeated values of these are held once. Use it in a `with`."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Raises TableError if the file claims more values than it has bytes."""
        with pq.ParquetFile(path) as file:
            leaves = [file.schema.column(number) for number in range(len(file.schema))]
            metadata, size = file.metadata, path.stat().st_size
        wanted = [leaf for leaf in leaves if leaf.path.split(".")[0] in columns]
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        most = max((group.column(leaf).num_values for group in groups for leaf in range(group.num_columns)), default=0)
        if max(most, metadata.num_rows) > size:
            raise TableError(f"it claims {max(most, metadata.num_rows):,} values in {size:,} bytes")
        for leaf in wanted:  # a dictionary repeats long values of a fixed length in a few bits
            if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.length * most > max(MOST_UNPACKED, MOST_RATIO * size):
                raise TableError(f"column {leaf.path!r} has up to {most:,} values of {leaf.length:,} bytes in {size:,} bytes")
        texts = [leaf.path for leaf in wanted if leaf.physical_type == "BYTE_ARRAY"]
        self._path, self._columns = path, list(columns)
        self._file = pq.ParquetFile(path, read_dictionary=texts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def groups(self) -> range:
        """The numbers of its row groups."""
        return range(self._file.metadata.num_row_groups)

    def rows(self, group: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of one row group. Equal texts are one object, so that repeating them takes no memory.

        Raises TableError if the group would unpack to far more than it should.
        """
        if not self._columns:
            yield from ({} for _ in range(self._file.metadata.row_group(group).num_rows))
            return
        table, texts = self.read(group), dict[str, str]()
        long = any(_longest(chunk) > MOST_TEXT for column in table.columns for chunk in column.chunks)
        at_once = 1 if long else _ROWS
        for start in range(0, table.num_rows, at_once):
            for row in table.slice(start, at_once).to_pylist():
                short = {name: cell for name, cell in row.items() if isinstance(cell, str) and len(cell) <= MOST_TEXT}
                yield row | {name: texts.setdefault(cell, cell) for name, cell in short.items()}

    def read(self, group: int) -> pa.Table:
        """Return one row group. Raises TableError as `rows` does."""
        found = self._file.metadata.row_group(group)
        for chunk in map(found.column, range(found.num_columns)):
            if chunk.path_in_schema.split(".")[0] in self._columns:
                self._check(chunk)
        return self._file.read_row_group(group, columns=self._columns)

    def _check(self, chunk: Any) -> None:
        """Raise TableError if a column of a row group unpacks to too much, whatever the end of the file says of it."""
        packed = chunk.total_compressed_size
        most, unpacked = max(MOST_UNPACKED, MOST_RATIO * packed), 0
        starts = [chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None]
        with self._path.open("rb") as stream:
            stream.seek(start := min(offset for offset in starts if offset))
            while stream.tell() < start + packed:
                size, encoding = _skip_page(stream)
                unpacked += size
                if encoding == _DELTA_BYTE_ARRAY:
                    raise TableError(
                        f"column {chunk.path_in_schema!r} is stored as DELTA_BYTE_ARRAY, which can unpack without bound; save it "
                        "with another encoding"
                    )
                if unpacked > most:
                    raise TableError(
                        f"column {chunk.path_in_schema!r} would unpack from {packed:,} to {unpacked:,} bytes or more"
                    )


def _longest(array: Any) -> int:
    """Return the bytes of the longest text in an array of any form."""
    if pa.types.is_dictionary(array.type):
        return int(pc.max(pc.binary_length(array.dictionary)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return max(map(_longest, array.flatten()), default=0)
    return _longest(array.values) if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) else 0


def _skip_page(stream: BinaryIO) -> tuple[int, int | None]:
    """Return the unpacked bytes and the encoding of the page that begins here, and go to the next one."""
    header = _thrift(stream)
    unpacked, packed = header.get(2), header.get(3)
    if not isinstance(unpacked, int) or not isinstance(packed, int) or min(unpacked, packed) < 0:
        raise TableError("its pages are damaged")
    stream.seek(packed, 1)
    first, second = header.get(5), header.get(8)  # of the two versions of data pages
    return unpacked, first.get(2) if isinstance(first, dict) else second.get(4) if isinstance(second, dict) else None


def _thrift(stream: BinaryIO, depth: int = 0) -> dict[int, Any]:
    """Read a struct in Thrift's compact protocol, by the numbers of its fields. Texts are skipped; pages have no lists.

    Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := _byte(stream):
        kind = head & 15
        number = number + (head >> 4) if head >> 4 else _whole(stream)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            fields[number] = _whole(stream)
        elif kind == 8:
            stream.seek(_varint(stream), 1)
        elif kind == 12 and depth < 4:
            fields[number] = _thrift(stream, depth + 1)
        else:
            raise TableError("its pages are damaged")
    return fields


def _byte(stream: BinaryIO) -> int:
    found = stream.read(1)
    if not found:
        raise TableError("its pages are cut")
    return found[0]


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        value |= ((byte := _byte(stream)) & 127) << shift
        if byte < 128:
            return value
    raise TableError("its pages are damaged")


def _whole(stream: BinaryIO) -> int:
    value = _varint(stream)
    return (value >> 1) ^ -(value & 1)

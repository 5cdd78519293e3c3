"""Read the bytes of listed pictures, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.annotation.sources.listing import PictureEntry
from cpo_ray.data.picture import MAX_BYTES, PictureError


def read(entries: Sequence[PictureEntry]) -> Iterator[bytes | PictureError]:
    """Return the bytes of each picture, in order, or why they cannot be read. Neighbours in a Parquet row group are read
    together.
    """
    place, group = ("", -1, ""), None
    for entry in entries:
        try:
            if not entry.column:
                yield _range(entry)
                continue
            if place != (entry.file, entry.start, entry.column):
                with pq.ParquetFile(entry.file) as file:
                    group = file.read_row_group(entry.start, columns=[entry.column]).column(0)
                place = (entry.file, entry.start, entry.column)
            assert group is not None
            yield _cell(group[entry.length].as_py())
        except (OSError, pa.ArrowInvalid) as error:
            yield PictureError(f"the picture cannot be read: {error}")
        except PictureError as error:
            yield error


def _range(entry: PictureEntry) -> bytes:
    if entry.length > MAX_BYTES:
        raise PictureError(f"the image file is larger than {MAX_BYTES // 2**20} MiB; save it smaller")
    with open(entry.file, "rb") as file:
        file.seek(entry.start)
        data = file.read(entry.length)
    if len(data) < entry.length:
        raise PictureError(f"{entry.source} ends after {len(data)} of {entry.length} bytes; copy it anew")
    return data


def _cell(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise PictureError("the row holds no image bytes")
    return value

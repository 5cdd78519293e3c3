"""Read the bytes of pictures from files of others, in bounded memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ray.data.picture import MAX_BYTES, PictureError
from cpo_ray.data.sources.table import Table


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
                with Table(Path(extent.file), [extent.column]) as table:
                    group = table.read(extent.start).column(0)
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

"""List the pictures of a Parquet file: one in each row, encoded, as bytes or as a struct with a field `bytes`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.data.shards import DataError
from cpo_ray.data.sources.extent import Extent
from cpo_ray.data.sources.listed import Folder, Pictured
from cpo_ray.data.sources.metadata import COLUMNS, entry_of
from cpo_ray.data.sources.names import split_of_file
from cpo_ray.data.sources.table import Table

#: Names that a column of pictures has, in order of preference, where there are several columns of bytes.
_IMAGES = ("image", "img", "picture", "photo", "jpg", "png", "webp")


class Columns(NamedTuple):
    """The columns of Parquet files with the picture, its id and its prompt. None finds them by name and type."""

    image: str | None = None
    id: str | None = None
    prompt: str | None = None


ANY = Columns()


def list_parquet(path: Path, name: str, columns: Columns, found: Folder) -> None:
    """List every row. Raises DataError if the file lacks a column that `columns` names."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
    except Exception as error:  # Arrow raises any exception, and one file must not end the work on all others
        _refuse(name, error, found)
        return
    for wanted in filter(None, columns):
        if wanted not in schema.names:
            raise DataError(f"{path} has no column {wanted!r}, as pictures.*_column says; choose among {', '.join(schema.names)}")
    image = columns.image or _image_column(schema)
    if image is None:
        known = ", ".join(schema.names)
        reason = f"{name} has no column of pictures, or several and none is named image; its columns are {known}"
        found.refuse(name, name, "no picture", reason)
        return
    try:
        for picture in _rows(path, name, image, columns):
            found.take(picture)
    except Exception as error:
        _refuse(name, error, found)


def _rows(path: Path, name: str, image: str, columns: Columns) -> Iterator[Pictured]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    named = {"id": columns.id, "prompt": columns.prompt}
    choices = {field: (chosen,) if (chosen := named.get(field)) else others for field, others in COLUMNS.items()}
    readable = [field.name for field in schema if not _holds_bytes(field.type)]
    taken = [name for names in choices.values() for name in names if name in readable and name != image]
    unread = tuple(name for name in schema.names if name not in taken and name != image)
    number, split = 0, split_of_file(name)
    with Table(path, taken) as table:
        for group in table.groups:
            for row, cells in enumerate(table.rows(group)):
                source = f"{name}:{number}"
                entry = entry_of(_as_texts(cells, choices["id"]), source, choices, unread)
                yield Pictured(source, entry, Extent(str(path), group, row, image), split)
                number += 1


def _as_texts(cells: dict[str, Any], ids: tuple[str, ...]) -> dict[str, Any]:
    """Write numbers as ids, which are whole numbers in many tables."""
    return cells | {name: str(cells[name]) for name in ids if isinstance(cells.get(name), int)}


def _image_column(schema: pa.Schema) -> str | None:
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in _IMAGES if name in holding]
    return named[0] if named else holding[0] if len(holding) == 1 else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _refuse(name: str, error: Exception, found: Folder) -> None:
    reason = f"{name} cannot be read as Parquet ({str(error).rstrip('.')}); what comes after is not listed"
    found.refuse(name, name, "unreadable file", reason)

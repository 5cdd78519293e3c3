"""List the pictures of a Parquet file: one in each row, encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.annotation.sources.listing import Listing, PictureEntry
from cpo_ray.config.annotation import PictureSource
from cpo_ray.data.shards import DataError


def list_parquet(path: Path, name: str, settings: PictureSource, listing: Listing) -> None:
    """List every row. Raises DataError if the file has no such column of pictures."""
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if settings.image_column not in columns:
                raise DataError(
                    f"{path} has no column {settings.image_column!r}; set pictures.image_column to one of {', '.join(columns)}"
                )
            wanted = [column for column in (settings.id_column, settings.prompt_column) if column in columns]
            number = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                table = file.read_row_group(group, columns=wanted).to_pydict() if wanted else {}
                for row in range(rows):
                    sample_id = _text_at(table, settings.id_column, row) or f"{name}:{number}"
                    prompt = _text_at(table, settings.prompt_column, row)
                    listing.add(PictureEntry(sample_id, prompt, f"{name}:{number}", str(path), group, row, settings.image_column))
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        listing.refuse(name, name, "unreadable file", f"{name} cannot be read as Parquet ({str(error).rstrip('.')})")


def _text_at(table: dict[str, list[Any]], column: str, row: int) -> str:
    value = table[column][row] if column in table else None
    return "" if value is None else str(value).strip()

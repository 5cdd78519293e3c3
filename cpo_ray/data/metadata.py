"""Read what people write beside their pictures: metadata files of several forms, and a caption file for each picture.

    metadata.jsonl    an object per line, or one JSON array
    metadata.json     an array of objects, or an object of objects by file name
    metadata.csv      columns with a header, separated by comma, semicolon or tab
    metadata.parquet  rows with the same columns
    picture.txt       the prompt of picture.png (kohya, ComfyUI, SimpleTuner, WebDataset)
    picture.json      an object with the fields of one picture

`COLUMNS` lists the names of each column. The first one that holds a text is taken.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.config.text import TextError, decode_text, read_text

NAMES = ("metadata.jsonl", "metadata.json", "metadata.csv", "metadata.tsv", "metadata.parquet")
SIDECARS = (".txt", ".caption", ".json")
#: Our name of a field → the columns that may hold it, in order of preference.
COLUMNS = {
    "file_name": ("file_name", "file_path", "image_path", "file"),
    "prompt": ("prompt", "text", "caption"),
    "id": ("id",),
    "positive": ("positive", "positive_ids"),
    "negative": ("negative", "negative_ids"),
}
MOST_CAPTION = 2**16


class MetadataError(ValueError):
    """A metadata file cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Entry:
    """What one entry says about a picture, under our names for the fields. `columns` has the name that each field came from.

    `source` names the entry's place for people. `problem` is a sentence if the entry cannot be read.
    """

    source: str
    fields: Mapping[str, Any]
    columns: Mapping[str, str]
    problem: str = ""


def entries(file: Path, source: str) -> Iterator[Entry]:
    """Yield the entries of a metadata file, in order. A broken entry carries its `problem`, and the others are still read.

    Raises MetadataError if the whole file cannot be read.
    """
    try:
        if file.suffix == ".parquet":
            rows: Iterator[tuple[int, Any]] = enumerate(pq.read_table(file).to_pylist(), 1)
        elif file.suffix in (".csv", ".tsv"):
            rows = _csv_rows(read_text(file))
        elif file.suffix == ".json":
            rows = _json_rows(read_text(file), source)
        else:
            rows = _jsonl_rows(file.read_bytes(), source)
    except (TextError, csv.Error) as error:
        raise MetadataError(str(error)) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise MetadataError(f"{source} cannot be read: {str(error).rstrip('.')}") from None
    for number, row in rows:
        yield entry_of(row, f"{source}:{number}")


def sidecar(file: Path, source: str) -> Entry:
    """Return what the file beside a picture says about it."""
    try:
        if file.stat().st_size > MOST_CAPTION:
            return Entry(source, {}, {}, f"{source} is larger than {MOST_CAPTION // 1024} KiB, which no prompt is")
        text = decode_text(file.read_bytes(), source)
    except (TextError, OSError) as error:
        return Entry(source, {}, {}, str(error))
    if file.suffix != ".json":
        return Entry(source, {"prompt": " ".join(text.split())}, {"prompt": file.suffix})
    return entry_of(_loaded(text), source)


def entry_of(row: Any, source: str) -> Entry:
    """Return the fields of one row, whatever its columns are called."""
    if isinstance(row, str):
        return Entry(source, {}, {}, row)
    if not isinstance(row, Mapping):
        return Entry(source, {}, {}, "the line is not a JSON object; write {…} with file_name, prompt, positive and negative")
    fields: dict[str, Any] = {}
    columns: dict[str, str] = {}
    for field, names in COLUMNS.items():
        # An empty text counts only if no other column holds a text.
        given = sorted((name for name in names if row.get(name) is not None), key=lambda name: row[name] == "")
        if given:
            fields[field], columns[field] = row[given[0]], given[0]
    return Entry(source, fields, columns)


def _loaded(text: str | bytes) -> Any:
    """Return the parsed JSON, or a sentence that says what is wrong with it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"the line is not valid JSON: {error}"


def _jsonl_rows(data: bytes, source: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows of JSON lines. Each line is decoded by itself, so that a broken one spoils only itself."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = decode_text(data, source).encode()
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.lstrip().startswith(b"["):
        return _json_rows(decode_text(data, source), source)
    return ((number, _loaded(line)) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())


def _json_rows(text: str, source: str) -> Iterator[tuple[int, Any]]:
    found = _loaded(text)
    if isinstance(found, Mapping):
        named = (value | {"file_name": name} if isinstance(value, dict) else value for name, value in found.items())
        return enumerate(named, 1)
    if isinstance(found, str):
        raise MetadataError(f"{source}: {found.replace('the line', 'the file')}")
    if not isinstance(found, list):
        raise MetadataError(f"{source} is neither a list of objects nor an object; write [{{…}}, {{…}}] or one object a line")
    return enumerate(found, 1)


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a table. Line numbers count the header, as editors do."""
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    lists = {*COLUMNS["positive"], *COLUMNS["negative"]}
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    return enumerate(({name: _list_in_cell(cell) if name in lists else cell for name, cell in row.items()} for row in rows), 2)


def _list_in_cell(cell: str | None) -> Any:
    """Parse a list in a table's cell: JSON, or words separated by commas, semicolons or bars."""
    text = (cell or "").strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return cell
    return [part for part in re.split(r"[\s,;|]+", text) if part]

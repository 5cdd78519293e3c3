"""Read what people write beside their pictures: metadata files of several forms, and a caption file for each picture.

    metadata.jsonl    an object per line, or one JSON array
    metadata.json     an array of objects, or an object of objects by file name
    metadata.csv      columns with a header, separated by comma, semicolon or tab
    metadata.parquet  rows with the same columns
    picture.txt       the prompt of picture.png (kohya, ComfyUI, SimpleTuner, WebDataset)
    picture.json      an object with the fields of one picture; with picture.txt beside it the text is its prompt if it has none

`COLUMNS` lists the names of each column. The first one that holds a text is taken.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from cpo_ray.config.text import TextError, decode_text
from cpo_ray.data.sources.table import MOST_TEXT, Table

NAMES = ("metadata.jsonl", "metadata.json", "metadata.csv", "metadata.tsv", "metadata.parquet")
SIDECARS = (".txt", ".caption", ".json")
#: Our name of a field → the columns that may hold it, in order of preference.
COLUMNS = {
    "file_name": ("file_name", "file_path", "image_path", "file"),
    "prompt": ("prompt", "text", "caption"),
    "id": ("id",),
    "positive": ("positive", "positive_ids"),
    "negative": ("negative", "negative_ids"),
    "split": ("split",),
}
_KNOWN = {name for names in COLUMNS.values() for name in names}


class MetadataError(ValueError):
    """A metadata file cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Entry:
    """What one entry says about a picture, under our names for the fields. `columns` has the name that each field came from, and
    `unread` those that are no field of ours.

    `source` names the entry's place for people. `problem` is a sentence if the entry cannot be read.
    """

    source: str
    fields: Mapping[str, Any]
    columns: Mapping[str, str]
    problem: str = ""
    unread: tuple[str, ...] = ()


def entries(file: Path, source: str) -> Iterator[Entry]:
    """Yield the entries of a metadata file, in order. A broken entry carries its `problem`, and the others are still read.

    Raises MetadataError if the whole file cannot be read.
    """
    try:
        suffix = file.suffix.lower()
        if suffix == ".parquet":
            rows = _parquet_rows(file)
        elif suffix in (".csv", ".tsv"):
            rows = _csv_rows(decode_text(file.read_bytes(), str(file)))
        elif suffix == ".json":
            rows = _json_rows(decode_text(file.read_bytes(), str(file)), source)
        else:
            rows = _jsonl_rows(file.read_bytes(), source)
        for number, row in rows:
            yield entry_of(row, f"{source}:{number}")
    except MetadataError:
        raise
    except TextError as error:
        raise MetadataError(str(error)) from None
    except Exception as error:  # parsers raise any exception, and one file must not end the work on all others
        raise MetadataError(f"{source} cannot be read: {str(error).rstrip('.')}") from None


def caption(files: Iterable[tuple[str, bytes | str]]) -> Entry:
    """Return what the files beside a picture say about it: their names, and their bytes or why these cannot be read."""
    fields: dict[str, Any] = {}
    columns: dict[str, str] = {}
    sources, unread = list[str](), list[str]()
    for name, data in files:
        found = _caption(name, data)
        if found.problem:
            return found
        fields, columns = {**found.fields, **fields}, {**found.columns, **columns}
        sources.append(name)
        unread += found.unread
    return Entry(" and ".join(sources), fields, columns, unread=tuple(unread))


def _caption(name: str, data: bytes | str) -> Entry:
    suffix = PurePosixPath(name).suffix.lower()
    try:
        text = decode_text(data, name) if isinstance(data, bytes) else ""
    except TextError as error:
        return Entry(name, {}, {}, str(error))
    if isinstance(data, str):
        return Entry(name, {}, {}, f"{name}: {data}")
    if len(data) > MOST_TEXT:
        return Entry(name, {}, {}, f"{name} is larger than {MOST_TEXT // 1024} KiB, which no prompt is")
    if suffix != ".json":
        return Entry(name, {"prompt": " ".join(text.split())}, {"prompt": suffix})
    found = entry_of(_loaded(text), name)
    return replace(found, problem=found.problem.replace("the line", "the file"))


def entry_of(
    row: Any, source: str, choices: Mapping[str, Sequence[str]] = COLUMNS, unread: tuple[str, ...] | None = None
) -> Entry:
    """Return the fields of one row, whatever its columns are called: `choices` names those of each field, `unread` the others."""
    if isinstance(row, str):
        return Entry(source, {}, {}, row)
    if not isinstance(row, Mapping):
        return Entry(source, {}, {}, "the line is not a JSON object; write {…} with file_name, prompt, positive and negative")
    fields: dict[str, Any] = {}
    columns: dict[str, str] = {}
    for field, names in choices.items():
        # An empty text, or a number, counts only if no other column holds a text.
        present = [name for name in names if row.get(name) is not None]
        given = sorted(present, key=lambda name: not isinstance(row[name], str | list) or row[name] == "")
        if given:
            fields[field], columns[field] = row[given[0]], given[0]
    if any(isinstance(value, str) and len(value) > MOST_TEXT for value in fields.values()):
        return Entry(source, {}, {}, f"a text is larger than {MOST_TEXT // 1024} KiB, which no prompt is")
    if unread is None:
        unread = tuple(sys.intern(str(name)) for name in row if name not in _KNOWN)
    return Entry(source, fields, columns, unread=unread)


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


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(file) as opened:
        columns = [name for name in opened.schema_arrow.names if name in _KNOWN]
    number = 0
    with Table(file, columns) as table:
        for group in table.groups:
            for row in table.rows(group):
                yield (number := number + 1), row


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
    for number, row in enumerate(csv.DictReader(io.StringIO(text), delimiter=delimiter), 2):
        if None in row:
            yield number, f"the row has more cells than the header; put texts that hold {delimiter!r} in double quotes"
        else:
            yield number, {name: _list_in_cell(cell) if name in lists else cell for name, cell in row.items()}


def _list_in_cell(cell: str | None) -> Any:
    """Parse a list in a table's cell: JSON, or words separated by commas, semicolons or bars."""
    text = (cell or "").strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return cell
    return [part for part in re.split(r"[\s,;|]+", text) if part]

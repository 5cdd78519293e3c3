"""List pictures in folders with or without a metadata.jsonl, Parquet files and WebDataset tars, alone or mixed.

Listing reads names and captions only. A picture is read when its turn comes, on any machine. Nothing is unpickled, and nothing is
unpacked to the disk: a member of a tar is a range of bytes in it.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.config.annotation import PictureSource
from cpo_ray.data.metadata import MetadataError, entries
from cpo_ray.data.picture import MAX_BYTES, PictureError
from cpo_ray.data.shards import DataError

#: Suffixes of picture files. Kinds that cannot be read are set aside, not skipped.
METADATA = "metadata.jsonl"
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
SUFFIXES |= {".avif", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".ico", ".tga", ".exr", ".dng"}
MAX_CAPTION = 2**16


@dataclass(frozen=True)
class PictureEntry:
    """A picture that was not read yet. `prompt` is empty if there is none; `source` names its place for people.

    Its bytes are `length` bytes from `start` in `file`; with a `column` they are row `length` of row group `start`.
    """

    id: str
    prompt: str
    source: str
    file: str
    start: int
    length: int
    column: str = ""


@dataclass(frozen=True)
class SetAside:
    """Something that cannot be annotated and the reason; `kind` groups the reasons."""

    source: str
    id: str
    kind: str
    reason: str


@dataclass
class Listing:
    """All pictures of a source in the order of their names, and what is wrong with the others."""

    entries: list[PictureEntry] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    _ids: dict[str, str] = field(default_factory=dict)

    def add(self, entry: PictureEntry) -> None:
        """Add a picture unless its id is taken."""
        first = self._ids.setdefault(entry.id, entry.source)
        if first == entry.source:
            self.entries.append(entry)
        else:
            self.refuse(entry.source, entry.id, "duplicate id", f"the id {entry.id!r} is that of {first} already")

    def refuse(self, source: str, sample_id: str, kind: str, reason: str) -> None:
        """Set something aside."""
        self.set_aside.append(SetAside(*(_writable(text) for text in (source, sample_id, kind, reason))))


def list_pictures(settings: PictureSource) -> Listing:
    """List everything at `settings.path`. Raises DataError if nothing is there or a Parquet file lacks the column."""
    path = settings.path.absolute()
    if not path.exists():
        raise DataError(f"there is nothing at {settings.path}; set pictures.path to a folder, a Parquet file or a tar")
    listing = Listing()
    if path.is_file():
        _list_file(path, path.parent, settings, listing, {})
        if not listing.entries and not listing.set_aside:
            raise DataError(
                f"{settings.path} is neither a picture nor a Parquet file nor a tar; set pictures.path to one, or a folder"
            )
        return listing
    metadata = _metadata(path, listing)
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                _list_file(Path(folder, name), path, settings, listing, metadata)
    for name, line in metadata.items():
        listing.refuse(line["source"], name, "unreadable file", f"there is no picture {name!r} in {settings.path}")
    return listing


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


def _list_file(path: Path, top: Path, settings: PictureSource, listing: Listing, metadata: dict[str, dict[str, Any]]) -> None:
    """List one file of the walk, by its suffix; a used entry is removed from `metadata`."""
    name = path.relative_to(top).as_posix()
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        entry = metadata.pop(name, {})
        if not path.resolve().is_relative_to(top.resolve()):
            reason = f"{name!r} is a link that leaves the folder; copy the picture into it"
            listing.refuse(name, entry.get("id", name), "path leaves the folder", reason)
        else:
            size = path.stat().st_size if path.exists() else 0
            listing.add(PictureEntry(entry.get("id", name), entry.get("prompt", ""), name, str(path), 0, size))
    elif suffix == ".parquet":
        _list_parquet(path, name, settings, listing)
    elif suffix == ".tar":
        _list_tar(path, name, listing)
    elif path.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        listing.refuse(name, name, "compressed tar", "a compressed tar cannot be read at random; unpack it to a plain .tar")


def _metadata(folder: Path, listing: Listing) -> dict[str, dict[str, Any]]:
    """Return file name → prompt, id and source of the lines of the folder's metadata.jsonl. Bad lines are set aside.

    Raises DataError if the whole file cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    if not (folder / METADATA).is_file():
        return found
    try:
        lines = list(entries(folder / METADATA, METADATA))
    except MetadataError as error:
        raise DataError(str(error)) from None
    for line in lines:
        if line.problem:
            listing.refuse(line.source, "", "broken line", line.problem)
            continue
        name, prompt = line.fields.get("file_name"), line.fields.get("prompt", "")
        sample_id = line.fields.get("id", name)
        if not _is_text(name) or not _is_text(sample_id) or not isinstance(prompt, str) or not _is_unicode(prompt):
            listing.refuse(line.source, str(sample_id), "missing or wrong field", "file_name, id and prompt must be text")
        elif (place := str(PurePosixPath(str(name)))) in found:
            listing.refuse(line.source, str(sample_id), "duplicate file", f"{name!r} has a line already")
        else:
            found[place] = {"id": sample_id, "prompt": prompt.strip(), "source": line.source}
    return found


def _list_parquet(path: Path, name: str, settings: PictureSource, listing: Listing) -> None:
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


def _list_tar(path: Path, name: str, listing: Listing) -> None:
    """List a WebDataset tar. Members belong to one sample if their names differ only after the first dot."""
    pictures: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    prompts: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, last = member.name.rpartition("/")
                stem, _, extension = last.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                suffix = f".{extension.lower().rpartition('.')[2]}"
                if not member.isreg() or not stem:
                    continue
                if suffix in SUFFIXES:
                    pictures.setdefault(key, []).append((extension, member))
                elif suffix in (".txt", ".json") and member.size <= MAX_CAPTION and not member.sparse:
                    # Other members are never opened: .pkl and .pth would run code.
                    stream = tar.extractfile(member)
                    prompts[key] = _caption(stream.read() if stream else b"", suffix) or prompts.get(key, "")
            # tarfile takes a damaged header for the end of the archive, which is a block of zeros.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        listing.refuse(name, name, "damaged tar", f"{name} is damaged ({error}); what comes after the damage is not listed")
    for key, members in pictures.items():
        for extension, member in members:
            sample_id = f"{name}/{key}" if len(members) == 1 else f"{name}/{key}.{extension}"
            if member.sparse:
                listing.refuse(f"{name}:{member.name}", sample_id, "sparse member", "a sparse member of a tar is not read")
                continue
            entry = PictureEntry(
                sample_id, prompts.get(key, ""), f"{name}:{member.name}", str(path), member.offset_data, member.size
            )
            listing.add(entry)


def _caption(data: bytes, suffix: str) -> str:
    """Return the content prompt in a .txt or .json of a sample; an empty text if there is none."""
    try:
        text = data.decode()
        if suffix == ".txt":
            return text.strip()
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    candidates: Iterable[Any] = (found.get(key) for key in ("prompt", "caption", "text")) if isinstance(found, dict) else ()
    return next((c.strip() for c in candidates if isinstance(c, str) and _is_unicode(c)), "")


def _text_at(table: dict[str, list[Any]], column: str, row: int) -> str:
    value = table[column][row] if column in table else None
    return "" if value is None else str(value).strip()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _writable(text: str) -> str:
    """Escape broken text, since Parquet holds valid Unicode only."""
    return text.encode("utf-8", "backslashreplace").decode()

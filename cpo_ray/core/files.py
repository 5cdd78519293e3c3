"""One durable writer and one tolerant reader for every small file that a run leaves."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class DiskFullError(RuntimeError):
    """A file did not fit on the disk; the message names the folder, what did not fit and what to do."""


class DamagedFileError(ValueError):
    """A file that we wrote cannot be read any more; the message names it, the place in it and what to do."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that nobody ever sees half-written, and that survives a power cut; its folder is made where it is missing.

    Raises DiskFullError on a full disk, and leaves nothing behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"the disk of {path.parent} is full: a file of {len(data):,} bytes did not fit; "
            "free some space or choose another folder, and start again; what is there is kept"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises DamagedFileError where that is no JSON, and FileNotFoundError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{path} is no JSON ({error}), so it was cut or changed; delete it and start again") from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that somebody appends to, or may have been stopped while appending; [] where none is.

    A last line without an end is what a process that died has left: it is dropped. Raises DamagedFileError, with the line's
    number, for any other line that is no JSON object.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DamagedFileError(f"{path}, line {number} is no JSON ({error}); remove the line or the file") from None
        if not isinstance(entry, dict):
            raise DamagedFileError(f"{path}, line {number} is no JSON object; remove the line or the file")
        entries.append(entry)
    return entries


def log_lines(entries: list[Mapping[str, Any]]) -> str:
    """Objects as `read_log` reads them."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)

"""The one durable writer and the one tolerant reader of the files that a run leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self


class DiskFullError(RuntimeError):
    """Something did not fit on the disk; the message names the folder and says what to do."""


class DamagedFileError(ValueError):
    """A file that we wrote cannot be read any more; the message names it, the place in it and what to do."""


@contextmanager
def disk_full_in(folder: Path) -> Iterator[None]:
    """Raises DiskFullError, which names the folder, where the block finds its disk full."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left on device" not in str(error):  # safetensors has no number for it, only words
            raise
        raise DiskFullError(
            f"the disk of {folder} is full; free some space or choose another folder, and start again; what is there is kept"
        ) from None


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A stream to a file that nobody ever sees half-written; its folder is made where it is missing.

    The file appears, or takes the place of an older one, when the block ends well; otherwise nothing is left behind.
    After a power cut either the old file or the whole new one is there. Raises DiskFullError on a full disk.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with disk_full_in(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes its name, and the place of an older one, when the block ends well.

    Otherwise nothing is left behind. Raises DiskFullError on a full disk.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with disk_full_in(path.parent):
        try:
            partial.mkdir(parents=True)
            yield partial
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder, also when the machine loses power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file as `written` does."""
    with written(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_log(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """`write_bytes` of objects as JSON lines, which `read_log` reads."""
    write_bytes(path, json_lines(entries))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote. Raises DamagedFileError where the file is not JSON, and FileNotFoundError."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not JSON ({error}), so it was cut or changed; delete it and start again") from None


def read_log(path: Path, *, skip_damaged: bool = False) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, such as a `Log` leaves; [] where there is no file.

    A last line without an end is what a process that died has left: it is dropped. Any other line that is not a JSON object
    raises DamagedFileError with its number, or is dropped too with `skip_damaged`, for files whose lines can be spared.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            entry, reason = None, f" ({error})"
        else:
            reason = ""
        if isinstance(entry, dict):
            entries.append(entry)
        elif not skip_damaged:
            raise DamagedFileError(f"{path}, line {number} is not a JSON object{reason}; remove the line or the file")
    return entries


def json_lines(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """Objects as lines of JSON, in ASCII, so that half a surrogate pair in a text loses nothing."""
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


class Log:
    """A file of JSON lines, open for appending by one process; close it or use it in a `with`.

    What one call appends is there wholly or not at all, and other processes see it at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_full_in(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def fileno(self) -> int:
        """The descriptor of the open file, for locking it."""
        return self._file

    def append(self, entries: Iterable[Mapping[str, Any]], *, sync: bool = False) -> None:
        """Add objects as lines; with `sync` they survive a loss of power once this returns.

        Raises DiskFullError where they do not fit. If this raises anything, none of them is there.
        """
        lines = json_lines(entries)
        with disk_full_in(self.path.parent):
            end = self._cut_torn_end()
            try:
                if os.write(self._file, lines) != len(lines):
                    raise OSError(errno.ENOSPC, "the disk took only a part")
                if sync:
                    os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, end)
                raise

    def sync(self) -> None:
        """Have the disk keep all that was appended, also when the machine loses power."""
        with disk_full_in(self.path.parent):
            os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_torn_end(self) -> int:
        """Remove what a process that died has left of a line, which would spoil the next one; returns the size of the file."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            size = self.path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(self._file, size)
        return size

"""Texts as they are read and shown.

Files are read in the encoding that their first bytes declare: UTF-8 with or without a mark, UTF-16 and UTF-32 with theirs.
Passwords in addresses are not shown.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from pathlib import Path

#: Mark at the start of a file → encoding. UTF-32's little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LARGEST = 2**28
#: What nobody should see of an address: the password of a database, whoever logs in to a web page, and secret arguments.
_SECRETS = (
    re.compile(r"((?<!http)(?<!https)://[^\s/@:\"']*:)[^\s\"']*(?=@)", re.IGNORECASE),
    re.compile(r"(https?://)[^\s/\"']+(?=@)", re.IGNORECASE),
    re.compile(r"([?&;][\w.-]*(?:password|passwd|pwd|secret|token|key)[\w.-]*=)[^\s&;\"']+", re.IGNORECASE),
)


class TextError(ValueError):
    """A file is not text in a known encoding; the message names the line and what to do."""


def read_file(path: Path) -> bytes:
    """Return a whole file that people write by hand. Raises OSError, also for a pipe, a device and a file of over 256 MiB."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {_LARGEST // 2**20} MiB", str(path))
    return data


def _without_waiting(path: str, flags: int) -> int:
    """Open a file. Otherwise, opening a pipe would wait until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: Path) -> str:
    """Return a whole text file with line ends as "\n". Raises TextError, and OSError as `read_file` does."""
    return decode_text(read_file(path), str(path))


def decode_text(data: bytes, where: str) -> str:
    """Return bytes as text with line ends as "\n". Raises TextError, which names `where`."""
    if b"\0" in data[:2] and not data.startswith(tuple(mark for mark, _ in _MARKS)):
        raise TextError(f"{where} looks like UTF-16 without the mark that says so; save it as UTF-8")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextError(
            f"{where}, line {line}: byte 0x{data[error.start]:02x} is not {encoding.removesuffix('-sig').upper()}; "
            "save the file as UTF-8"
        ) from None


def redacted(text: str) -> str:
    """Return a text with "…" for every password, token or key in an address."""
    for secret in _SECRETS:
        text = secret.sub(r"\1…", text)
    return text

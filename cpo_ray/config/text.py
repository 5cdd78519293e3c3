"""Read text files in the encoding that their first bytes declare: UTF-8 with or without a mark, UTF-16 and UTF-32 with theirs."""

from __future__ import annotations

import codecs
from pathlib import Path

#: Mark at the start of a file → encoding. UTF-32's little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class TextError(ValueError):
    """A file is not text in a known encoding; the message names the line and what to do."""


def read_text(path: Path) -> str:
    """Return a whole text file with line ends as "\n". Raises TextError, and OSError if it cannot be read."""
    return decode_text(path.read_bytes(), str(path))


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

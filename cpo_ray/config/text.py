"""Text files in whatever encoding says what it is: UTF-8, with a mark or without, UTF-16 and UTF-32 with theirs."""

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
    """A file is not text in an encoding that can be known; the message names the line and what to do."""


def read_text(path: Path) -> str:
    """A whole text file, line ends as "\\n". Raises TextError, and OSError where it cannot be read."""
    return decode_text(path.read_bytes(), str(path))


def decode_text(data: bytes, where: str) -> str:
    """Bytes as text, line ends as "\\n". Raises TextError, which names `where`."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextError(
            f"{where}, line {line}: byte 0x{data[error.start]:02x} is not {encoding.removesuffix('-sig').upper()}; "
            "save the file as UTF-8"
        ) from None

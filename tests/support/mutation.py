"""Changes a file as damage and malice do; the same seed makes the same changes."""

from __future__ import annotations

import json
import random
from typing import Any

#: What readers of texts and of lengths stumble over.
WORDS = (
    *(
        b"",
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"'",
        b"\\",
    ),
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"0x", b"[" * 3000, b"{" * 3000, b'{"a":' * 3000, b"&a [*a, *a]", b"!!python/x"),
    *(
        b"\xf0\x9f\x8e\xa8",
        b"../../x",
        b"\\ud800",
        b"- " * 500,
        b": ",
        b",,,,",
        b"#",
        b"%s",
        b"9" * 5000,
        b"2024-01-01T00:00:00Z",
    ),
    *(number.to_bytes(8, "little") for number in (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)),
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    float("nan"),
    "",
    "x" * 5000,
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    {"": None},
)


class Mutator:
    """Random changes from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def damaged(self, data: bytes) -> bytes:
        """Return bytes with one to four changes."""
        for _ in range(self._random.randint(1, 4)):
            data = self._changed(bytearray(data))
        return data

    def json(self, value: Any) -> Any:
        """Return a value with one to four changes of its parts."""
        for _ in range(self._random.randint(1, 4)):
            value = self._part(value)
        return value

    def text(self, value: Any) -> bytes:
        """Return a changed value as JSON, sometimes with changed bytes, too."""
        data = json.dumps(self.json(value)).encode()
        return self.damaged(data) if self._random.random() < 0.3 else data

    def _changed(self, data: bytearray) -> bytes:
        start = self._random.randrange(len(data) + 1)
        end = min(len(data), start + self._random.choice((1, 2, 4, 8, 64, 4096)))
        match self._random.randrange(6):
            case 0 if data:
                data[min(start, len(data) - 1)] ^= 1 << self._random.randrange(8)
            case 1:
                data[start:end] = self._random.choice(WORDS)
            case 2:
                data[start:start] = self._random.choice(WORDS)
            case 3:
                del data[start:end]
            case 4:
                data[start:start] = data[start:end] * self._random.choice((1, 2, 50))
            case 5 if self._random.random() < 0.5:
                del data[start:]
        return bytes(data)

    def _part(self, value: Any) -> Any:
        if not isinstance(value, dict | list) or not value or self._random.random() < 0.2:
            return self._random.choice(VALUES)
        if isinstance(value, dict):
            key = self._random.choice(list(value))
            rest = {name: each for name, each in value.items() if name != key}
            kept = {} if self._random.random() < 0.2 else {key: self._part(value[key])}
            return {**rest, **kept, **({"x": 1} if self._random.random() < 0.1 else {})}
        place = self._random.randrange(len(value))
        return [*value[:place], self._part(value[place]), *value[place + self._random.randrange(2) :]]

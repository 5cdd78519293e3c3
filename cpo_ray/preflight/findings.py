"""The lines of `--check`."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "note", "missing"]


class Finding(NamedTuple):
    """One line of the answer. A run cannot start if one is "missing". The start of a run prints those that are `planned`, too."""

    verdict: Verdict
    sentence: str
    planned: bool = False

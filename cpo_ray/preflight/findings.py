"""What `--check` has to say, one line each."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "note", "missing"]


class Finding(NamedTuple):
    """One line of the answer; a run cannot start where one is "missing". What is `planned` is said at the start of a run, too."""

    verdict: Verdict
    sentence: str
    planned: bool = False

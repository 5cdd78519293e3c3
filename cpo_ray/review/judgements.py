"""Judgements on disk: an append-only JSONL file per reviewer, readable by people and by other programs.

A judgement is on disk before the page shows it as kept. A line that a crash or a power cut left incomplete was never shown as
kept, and reading skips it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cpo_ray.config.section import Section
from cpo_ray.core.prompts import Labels
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import Hierarchy

#: "open" withdraws a judgement. "unsure" is a judgement: the expert looked and cannot tell.
Verdict = Literal["confirmed", "rejected", "unsure", "open"]
#: Picture → signed id → verdict, never "open".
Verdicts = dict[str, dict[str, Verdict]]

REVIEWER = re.compile(r"\w[\w.-]{0,63}")


class ReviewError(ValueError):
    """The review cannot continue; one sentence says why and what to do."""


class Judgement(Section):
    """One line of a reviewer's file. The last line about a label is the valid one."""

    sample: str
    attribute: str
    sign: Literal["+", "-"]
    verdict: Verdict
    hierarchy: str
    """Content hash of the tree that the reviewer saw."""
    time: datetime


def signed_ids(labels: Labels) -> tuple[str, ...]:
    """Return all labels of a picture as signed ids, the positive ones first."""
    return (*(f"+{name}" for name in labels.positive_ids), *(f"-{name}" for name in labels.negative_ids))


def judgement_file(folder: Path, reviewer: str) -> Path:
    """Return the path of a reviewer's file. Raises ReviewError for a name that cannot be a file name."""
    if not REVIEWER.fullmatch(reviewer):
        raise ReviewError(f"the reviewer {reviewer!r} needs a name of letters, digits, '_', '.' and '-', 64 of them at most")
    return folder / f"{reviewer}.jsonl"


def read_judgements(file: Path, dataset: AnnotatedDataset, tree: Hierarchy) -> Verdicts:
    """Return a reviewer's verdicts on the labels of `dataset`.

    Raises ReviewError for a line that is not a judgement, or that judges a picture, label or hierarchy that the data set does not
    have.
    """
    *lines, _torn = file.read_bytes().split(b"\n")
    known, verdicts = set(dataset.ids), Verdicts()
    for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        try:
            judgement = Judgement.model_validate_json(line)
        except ValidationError as error:
            raise ReviewError(f"{where} is not a judgement ({error.errors()[0]['msg']}); remove the line") from None
        signed = judgement.sign + judgement.attribute
        if fault := _fault(judgement, known, dataset, tree):
            raise ReviewError(
                f"{where} {fault}; give the hierarchy and the annotations that were reviewed, or another review.judgements"
            )
        _take(verdicts, judgement.sample, signed, judgement.verdict)
    return verdicts


def _take(verdicts: Verdicts, sample: str, signed: str, verdict: Verdict) -> None:
    held = verdicts.setdefault(sample, {})
    if verdict == "open":
        held.pop(signed, None)
    else:
        held[signed] = verdict
    if not held:
        del verdicts[sample]


def _fault(judgement: Judgement, known: set[str], dataset: AnnotatedDataset, tree: Hierarchy) -> str:
    """Return why a judgement does not belong to these shards; an empty text if it does."""
    signed = judgement.sign + judgement.attribute
    if judgement.hierarchy != tree.content_hash:
        return f"was judged by hierarchy {judgement.hierarchy} and not by {tree.name!r} ({tree.content_hash})"
    if judgement.sample not in known:
        return f"judges the picture {judgement.sample!r}, which is not in {dataset.folder}"
    if signed not in signed_ids(dataset.labels(judgement.sample)):
        return f"judges the label {signed!r}, which {judgement.sample!r} does not have in {dataset.folder}"
    return ""


class JudgementFile:
    """One reviewer's file, open for appending by one process at a time. `verdicts` mirrors what is on disk."""

    def __init__(self, file: Path, dataset: AnnotatedDataset, tree: Hierarchy) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._hierarchy_hash = file, tree.content_hash
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.verdicts = read_judgements(file, dataset, tree)
        except BlockingIOError:
            os.close(self._file)
            raise ReviewError(f"{file} is open in another review; close that one, or give another --reviewer") from None
        except ReviewError:
            os.close(self._file)
            raise
        # Appending to an incomplete line would make one broken line of both.
        os.ftruncate(self._file, file.read_bytes().rfind(b"\n") + 1)
        _sync_folder(file.parent)

    def append(self, sample: str, verdicts: Mapping[str, Verdict]) -> None:
        """Write verdicts on labels (signed ids) of one picture. If the disk does not take them, raise OSError and keep none of
        them.
        """
        time = datetime.now(UTC)
        lines = b"".join(self._line(sample, signed, verdict, time) for signed, verdict in verdicts.items())
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, lines) != len(lines):
                raise OSError(errno.ENOSPC, "the disk took only a part")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise
        for signed, verdict in verdicts.items():
            _take(self.verdicts, sample, signed, verdict)

    def close(self) -> None:
        """Release the file for other processes."""
        os.close(self._file)

    def _line(self, sample: str, signed: str, verdict: Verdict, time: datetime) -> bytes:
        sign: Literal["+", "-"] = "+" if signed[0] == "+" else "-"
        judgement = Judgement(
            sample=sample, attribute=signed[1:], sign=sign, verdict=verdict, hierarchy=self._hierarchy_hash, time=time
        )
        return judgement.model_dump_json().encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file durable, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Judgements on disk: an append-only JSONL file per reviewer, readable by people and by other programs.

A judgement is on disk before the page shows it as kept. A line that a crash or a power cut left incomplete was never shown as
kept, and reading skips it.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cpo_ray.config.section import Section
from cpo_ray.core.files import DamagedFileError, Log, read_log, sync
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

    Raises ReviewError for an entry that is not a judgement, or that judges a picture, label or hierarchy that the data set does
    not have, and DamagedFileError for a line that is not an entry.
    """
    known, verdicts = set(dataset.ids), Verdicts()
    for number, entry in enumerate(read_log(file), 1):
        where = f"{file}, line {number}"
        try:
            judgement = Judgement.model_validate(entry)
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
        self.path, self._hierarchy_hash = file, tree.content_hash
        self._log = Log(file)
        try:
            fcntl.flock(self._log.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.verdicts = read_judgements(file, dataset, tree)
        except BlockingIOError:
            self._log.close()
            raise ReviewError(f"{file} is open in another review; close that one, or give another --reviewer") from None
        except (ReviewError, DamagedFileError):
            self._log.close()
            raise
        sync(file.parent)  # the name of a new file must be durable, too

    def append(self, sample: str, verdicts: Mapping[str, Verdict]) -> None:
        """Write verdicts on labels (signed ids) of one picture.

        Raises DiskFullError or OSError if the disk does not take them, and keeps none of them then.
        """
        time = datetime.now(UTC)
        self._log.append((self._entry(sample, signed, verdict, time) for signed, verdict in verdicts.items()), sync=True)
        for signed, verdict in verdicts.items():
            _take(self.verdicts, sample, signed, verdict)

    def close(self) -> None:
        """Release the file for other processes."""
        self._log.close()

    def _entry(self, sample: str, signed: str, verdict: Verdict, time: datetime) -> dict[str, Any]:
        sign: Literal["+", "-"] = "+" if signed[0] == "+" else "-"
        judgement = Judgement(
            sample=sample, attribute=signed[1:], sign=sign, verdict=verdict, hierarchy=self._hierarchy_hash, time=time
        )
        return judgement.model_dump(mode="json")

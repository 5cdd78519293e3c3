"""Answers on disk: append-only JSONL, one file per writer, readable by people and by other programs.

A record is one line, written by one call, so a killed process leaves whole lines. Reading skips a line that a full disk or a
power cut left incomplete. Reading covers all files of the folder, so that actors, runs and hierarchies share it.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cpo_ray.annotation.asking.questions import PROMPT_VERSION, Question
from cpo_ray.core.files import Log, read_log


@dataclass(frozen=True)
class Answer:
    """An unparsed answer of the back end, and the tokens that it took, earlier tries included."""

    text: str
    tokens_in: int
    tokens_out: int


class Answers:
    """The answers for one `identity` of back end, model and picture size (`AnnotationConfig.identity`).

    The first answer to a question stays, and an answer replaces a failure.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._identity = identity
        self._spoken = json.dumps(identity, sort_keys=True)
        self._answers: dict[str, Answer] = {}
        self._failures: dict[str, str] = {}
        self._tokens: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._log: Log | None = None
        self._synced = time.monotonic()
        for path in sorted(folder.glob("*.jsonl")):
            for record in read_log(path, skip_damaged=True):
                self._take(record)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, picture: str, question: Question) -> Answer | None:
        """Return the answer to a question about the picture with that hash, if there is one."""
        return self._answers.get(self._key(picture, question))

    def failure(self, picture: str, question: Question) -> str | None:
        """Return why the question failed, if it did."""
        key = self._key(picture, question)
        return None if key in self._answers else self._failures.get(key)

    def expected_tokens(self, root_id: str) -> tuple[int, int] | None:
        """Return the mean tokens in and out of the answers about one root so far; None without answers."""
        seen = self._tokens[root_id]
        return (round(sum(t for t, _ in seen) / len(seen)), round(sum(t for _, t in seen) / len(seen))) if seen else None

    def put(self, picture: str, question: Question, answer: Answer) -> None:
        """Keep an answer. Raises DiskFullError if the disk is full."""
        fields = {"answer": answer.text, "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out}
        self._append(picture, question, fields)

    def put_failure(self, picture: str, question: Question, sentence: str) -> None:
        """Note that a question failed, so that only --retry-failed asks it again."""
        self._append(picture, question, {"failure": sentence})

    def close(self) -> None:
        """Make everything durable, so that it survives a power cut."""
        if self._log is not None:
            self._log.sync()
            self._log.close()
            self._log = None

    def _append(self, picture: str, question: Question, fields: dict[str, Any]) -> None:
        record = {
            "key": self._key(picture, question),
            "picture": picture,
            "root": question.root_id,
            "prompt_version": PROMPT_VERSION,
            **self._identity,
            **fields,
        }
        if self._log is None:
            self._log = Log(self._folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl")
        self._log.append([record])
        self._take(record)
        if time.monotonic() - self._synced > 1:
            self._log.sync()
            self._synced = time.monotonic()

    def _take(self, record: dict[str, Any]) -> None:
        """Take one record into memory. Incomplete records and those of another identity are skipped."""
        try:
            if {name: record[name] for name in self._identity} != self._identity:
                return
            if "failure" in record:
                self._failures[record["key"]] = str(record["failure"])
                return
            answer = Answer(record["answer"], int(record["tokens_in"]), int(record["tokens_out"]))
            self._answers.setdefault(record["key"], answer)
            self._tokens[record["root"]].append((answer.tokens_in, answer.tokens_out))
        except (ValueError, KeyError, TypeError):
            return

    def _key(self, picture: str, question: Question) -> str:
        whole = f"{picture}/{question.digest}/{self._spoken}"
        return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()

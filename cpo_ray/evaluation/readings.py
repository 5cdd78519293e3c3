"""Have the models of scorers read pictures, batch by batch, in this process or in a pool of Ray actors.

What was read from a picture is kept under its hash, so a picture is read once by a model, also after a kill. No process holds
more pictures than it works on.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError

from cpo_ray.config import Config, Evaluation
from cpo_ray.core.files import Log, read_log
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.measure import Readings
from cpo_ray.evaluation.scorers.base import ModelScorer, NotScored, Scorer
from cpo_ray.evaluation.scorers.readers.base import Reader

#: Part of the address of what was read; raise it when a reader's numbers change.
VERSION = 1
REFERENCE = "reference"

Rows = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Asked:
    """Pictures that somebody asks for, each with its prompt."""

    pictures: Sequence[Picture]
    prompts: Sequence[str]


@dataclass(frozen=True, eq=False)
class Portion:
    """Pictures that are read together, with the keys that their rows are kept under."""

    keys: tuple[str, ...]
    pictures: list[Picture]
    prompts: list[str]


#: Reads batches, in any order.
Read = Callable[[Iterable[Portion]], Iterator[tuple[Portion, Rows]]]


def read_models(
    config: Config, scorers: Sequence[Scorer], asked: Mapping[str, Asked], folder: Path
) -> tuple[dict[str, dict[str, Readings]], dict[str, str]]:
    """Have a pool of actors read the pictures of all models for every scorer with a model, one scorer after the other.

    `folder` keeps what was read. Returns the readings by model and scorer, and for scorers that have none the reason.
    """
    found: dict[str, dict[str, Readings]] = {name: {} for name in asked}
    left_out: dict[str, str] = {}
    for scorer in scorers:
        if not isinstance(scorer, ModelScorer):
            continue
        try:
            with _Pool(config.evaluation, scorer) as pool:
                for name, readings in readings_of(config, scorer, asked, folder, pool.read).items():
                    found[name][scorer.name] = readings
        except NotScored as error:
            left_out[scorer.name] = str(error)
    return found, left_out


def readings_of(config: Config, scorer: ModelScorer, asked: Mapping[str, Asked], folder: Path, read: Read) -> dict[str, Readings]:
    """Return what one scorer's model reads from the pictures of each model, and from its reference. Raises NotScored."""
    kept = folder / f"{scorer.name}-{_identity(scorer)[:16]}"
    size = config.evaluation.batch
    pictures = scorer.reference(config)
    reference = None if pictures is None else _rows(scorer, Asked(pictures, [""] * len(pictures)), kept / REFERENCE, size, read)
    return {
        name: Readings(_rows(scorer, one, kept / hashlib.sha256(name.encode()).hexdigest()[:16], size, read), reference)
        for name, one in asked.items()
    }


def read_here(reader: Reader, batches: Iterable[Portion]) -> Iterator[tuple[Portion, Rows]]:
    """Read batches in this process."""
    for batch in batches:
        yield batch, reader.read(batch.pictures, batch.prompts)


def on_device(reader: Reader) -> Reader:
    """Bring a reader to this process's GPU, if it has one."""
    return reader.to("cuda" if torch.cuda.is_available() else "cpu")


def _identity(scorer: ModelScorer) -> str:
    """Changes with everything that a reading depends on beside the picture and the prompt. Raises NotScored."""
    weights = scorer.weights()
    told = scorer.told.model_dump(mode="json") | {"version": VERSION, "weights": weights.fingerprint if weights else ""}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _rows(scorer: ModelScorer, asked: Asked, kept: Path, size: int, read: Read) -> Rows:
    """(N, D) numbers of all pictures: those that were read before, and those that `read` reads now."""
    file = kept.with_suffix(".jsonl")
    known = {entry["key"]: entry["row"] for entry in read_log(file, skip_damaged=True)}
    keys: list[str] = []

    def batches() -> Iterator[Portion]:
        for start in range(0, len(asked.pictures), size):
            made = [np.asarray(picture) for picture in asked.pictures[start : start + size]]
            prompts = list(asked.prompts[start : start + size])
            names = [_key(picture, prompt if scorer.reads_prompts else "") for picture, prompt in zip(made, prompts, strict=True)]
            keys.extend(names)
            if left := [i for i, name in enumerate(names) if name not in known]:
                yield Portion(tuple(names[i] for i in left), [made[i] for i in left], [prompts[i] for i in left])

    with Log(file) as log:
        for batch, rows in read(batches()):
            entries = [{"key": key, "row": _encoded(row)} for key, row in zip(batch.keys, rows, strict=True)]
            log.append(entries)
            known |= {entry["key"]: entry["row"] for entry in entries}
    return np.stack([_decoded(known[key]) for key in keys])


def _key(picture: Picture, prompt: str) -> str:
    seen = hashlib.sha256(np.ascontiguousarray(picture).data)
    seen.update(json.dumps([picture.shape, prompt]).encode())
    return seen.hexdigest()[:32]


def _encoded(row: Rows) -> str:
    return base64.b64encode(np.ascontiguousarray(row, dtype="<f4").tobytes()).decode()


def _decoded(text: str) -> Rows:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


class _Pool:
    """Actors that hold one scorer's model; the first batch that nobody has read starts them."""

    def __init__(self, settings: Evaluation, scorer: ModelScorer) -> None:
        self._settings, self._scorer = settings, scorer
        self._actors: list[Any] = []

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def read(self, batches: Iterable[Portion]) -> Iterator[tuple[Portion, Rows]]:
        """Keep every actor busy with one batch. Raises NotScored where the model cannot be loaded or fails."""
        at_work: dict[Any, tuple[Any, Portion]] = {}
        free: deque[Any] = deque(self._actors)
        for batch in batches:
            if not free and len(self._actors) < self._settings.actors:
                free.append(self._start())
            if not free:
                yield self._finished(at_work, free)
            actor = free.popleft()
            at_work[actor.read.remote(batch.pictures, batch.prompts)] = actor, batch
        while at_work:
            yield self._finished(at_work, free)

    def _start(self) -> Any:
        given = self._settings
        remote = ray.remote(ReadingActor).options(
            num_cpus=given.cpus_per_actor, num_gpus=given.gpus_per_actor, max_restarts=2, max_task_retries=2
        )
        self._actors.append(remote.remote(type(self._scorer)(self._scorer.told.on_other_machines())))
        return self._actors[-1]

    def _finished(self, at_work: dict[Any, tuple[Any, Portion]], free: deque[Any]) -> tuple[Portion, Rows]:
        (done, *_), _ = ray.wait(list(at_work), num_returns=1)
        actor, batch = at_work.pop(done)
        free.append(actor)
        try:
            answer: Rows | str = ray.get(done)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise NotScored(f"its model failed ({reason}); lower evaluation.batch if memory ran out") from None
        if isinstance(answer, str):
            raise NotScored(answer)
        return batch, answer


class ReadingActor:
    """Holds the model of one scorer, loaded at the first batch."""

    def __init__(self, scorer: ModelScorer) -> None:
        torch.set_num_threads(1)  # the pool's actors provide the parallelism
        self._scorer = scorer
        self._reader: Reader | None = None

    def read(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> Rows | str:
        """(N, D) numbers, or the sentence that says why there are none."""
        try:
            if self._reader is None:
                self._reader = on_device(self._scorer.open_reader())
            return self._reader.read(pictures, prompts)
        except NotScored as error:
            return str(error)

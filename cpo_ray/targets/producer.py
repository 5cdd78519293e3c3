"""Fill the target store with a Ray Data actor pool, ahead of training or beside it."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.exceptions import RayError, RayTaskError
from ray.util.annotations import RayDeprecationWarning

from cpo_ray.config import Targets
from cpo_ray.core.files import DiskFullError, write_json
from cpo_ray.core.plan import Item
from cpo_ray.data.picture import PictureError
from cpo_ray.models.bases.source import anywhere
from cpo_ray.targets.expert import Expert, ExpertSpec, frozen_inputs, target_store
from cpo_ray.targets.images import add_images
from cpo_ray.targets.store import Items, TargetStore, TargetStoreError

Progress = Callable[[int, int], None]


class ProductionError(RuntimeError):
    """Targets cannot be computed. The message is one sentence and names the sample at fault, if there is one."""


@dataclass(frozen=True)
class ProductionReport:
    """The result of one call of `produce`. `dropped_attributes` attributes exceeded the text encoder's token limit."""

    shards_written: int
    already_there: int
    samples: int
    expert_forwards: int
    seconds: float
    dropped_attributes: int


def produce(
    spec: ExpertSpec,
    shards: Sequence[Items],
    targets: Targets,
    on_progress: Progress | None = None,
    stopped: threading.Event | None = None,
) -> ProductionReport:
    """Compute the missing shards, in order, on `targets.min_actors` to `max_actors` actors.

    `on_progress` gets (existing shards, all shards) after each one. Once `stopped` is set, the work ends after the current
    shards. Neither the number of actors nor an interruption changes a byte. Raises ProductionError.
    """
    started = time.monotonic()
    store = target_store(spec, targets.folder)
    missing = store.missing(shards)
    already_there = len(shards) - len(missing)
    rows: list[dict[str, Any]] = []
    if missing:
        store.write_about(frozen_inputs(spec))
        for row in _rows(_dataset(_for_workers(spec, targets), store, missing, targets)):
            if row["error"]:
                raise ProductionError(row["error"])
            rows.append(row)
            if on_progress is not None:
                on_progress(already_there + len(rows), len(shards))
            if stopped is not None and stopped.is_set():
                break
    return ProductionReport(
        shards_written=len(rows),
        already_there=already_there,
        samples=sum(row["samples"] for row in rows),
        expert_forwards=sum(row["forwards"] for row in rows),
        seconds=time.monotonic() - started,
        dropped_attributes=sum(row["dropped"] for row in rows),
    )


class BackgroundProducer:
    """Runs `produce` in a thread of the driver while training runs; a context manager that stops it at the end.

    If it fails, the store's failure marker of `run_id` tells the waiting readers why.
    """

    def __init__(
        self, spec: ExpertSpec, shards: Sequence[Items], targets: Targets, run_id: str, on_progress: Progress | None = None
    ) -> None:
        self._marker = target_store(spec, targets.folder).failure_marker(run_id)
        self._marker.unlink(missing_ok=True)
        self._stopped = threading.Event()
        self._result: Future[ProductionReport] = Future()
        # A daemon, since a thread that waits for CPUs which never become free must not keep the driver alive.
        arguments = (spec, shards, targets, on_progress, self._stopped)
        self._thread = threading.Thread(target=self._run, args=arguments, name="targets", daemon=True)
        self._thread.start()

    def __enter__(self) -> BackgroundProducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def join(self) -> ProductionReport:
        """Wait for the end. Raises what `produce` raised."""
        return self._result.result()

    def stop(self) -> None:
        """End after the current shards, waiting half a minute for them. Written shards stay."""
        self._stopped.set()
        self._thread.join(timeout=30)

    def _run(self, *arguments: Any) -> None:
        try:
            self._result.set_result(produce(*arguments))
        except Exception as error:  # any exception must cross the thread: join() raises it, and readers stop with it
            self._result.set_exception(error)
            sentence = str(error) if isinstance(error, ProductionError) else f"the producer of targets failed: {error!r}"
            write_json(self._marker, {"sentence": sentence})


class ExpertActor:
    """One member of the pool: holds an `Expert` and writes whole shards. Only a status row goes back."""

    def __init__(self, spec: ExpertSpec, store: TargetStore) -> None:
        if spec.device == "cpu":
            # More threads would sum in another order, and so give other bytes on another machine.
            torch.set_num_threads(1)
        self._expert = Expert(spec)
        self._store = store

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Turn a row of items and images into a row of status. Faults of the data come back in "error"."""
        started = time.monotonic()
        (row,) = rows.to_pylist()
        items = [Item(*item) for item in json.loads(row["items"])]
        forwards, dropped, error = self._expert.forwards, self._expert.dropped_attributes, ""
        try:
            tensors = self._expert(items, row["images"])
            self._store.write(items, tensors, {"dropped_attributes": self._expert.dropped_attributes - dropped})
        except (PictureError, TargetStoreError, DiskFullError) as problem:
            error = str(problem)
        status = {
            "shard": self._store.path(items).stem,
            "samples": len(items),
            "forwards": self._expert.forwards - forwards,
            "dropped": self._expert.dropped_attributes - dropped,
            "seconds": time.monotonic() - started,
            "error": error,
        }
        return pa.Table.from_pylist([status])


def _dataset(spec: ExpertSpec, store: TargetStore, shards: Sequence[Items], targets: Targets) -> Dataset:
    """Return a dataset with one row and one block per shard: items → + images (tasks) → status (actor pool)."""
    rows = [{"items": json.dumps(items)} for items in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False
    with_images = dataset.map_batches(
        add_images,
        fn_args=(spec.dataset, spec.losers),
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=min(targets.max_actors, len(rows))),
        num_cpus=0.1,  # this task mostly waits for the disk, and must not take the CPUs of actors and trainers
    )
    with warnings.catch_warnings():
        # Deprecated since Ray 2.60, which has no other way yet to bound an actor's restarts.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return with_images.map_batches(
            ExpertActor,
            fn_constructor_args=(spec, store),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=targets.min_actors, max_size=targets.max_actors),
            num_cpus=targets.cpus_per_actor,
            num_gpus=targets.gpus_per_actor,
            ray_remote_args_fn=_bounded_retries,
        )


def _bounded_retries() -> dict[str, int]:
    """Bound the retries, or Ray would try a row that kills its actor for ever.

    Ray prints a line about "constructor arguments in the object store" where actors may restart. It means two objects that Ray
    Data itself gives to each actor (ray-project/ray#57733). They live as long as the driver, so that a restart finds them.
    """
    return {"max_restarts": 4, "max_task_retries": 1}


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the status rows as they arrive. Raises ProductionError if an actor or a task died or failed."""
    try:
        for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise ProductionError(f"a worker that computes targets failed: {cause}") from error


def _for_workers(spec: ExpertSpec, targets: Targets) -> ExpertSpec:
    """Return the spec with absolute paths, since other processes work in another folder."""
    return replace(
        spec,
        model=anywhere(spec.model),
        dataset=spec.dataset.absolute(),
        hierarchy=spec.hierarchy.absolute(),
        adapter=None if spec.adapter is None else spec.adapter.absolute(),
        vae=None if spec.vae is None else spec.vae.absolute(),
        device="cuda" if targets.gpus_per_actor else "cpu",
    )

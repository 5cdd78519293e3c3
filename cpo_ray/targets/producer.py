"""Fill the target store with a Ray Data actor pool, ahead of training or beside it."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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

#: How often a producer that has nothing left to do looks for shards that readers have set aside.
LOOK_EVERY_SECONDS = 2.0


class ProductionError(RuntimeError):
    """Targets cannot be computed. The message is one sentence and names the sample at fault, if there is one."""


@dataclass(frozen=True)
class ProductionReport:
    """What was computed. `dropped_attributes` attributes exceeded the text encoder's token limit.

    `damaged` shards were computed again, since a reader found them damaged.
    """

    shards_written: int
    already_there: int
    samples: int
    expert_forwards: int
    seconds: float
    dropped_attributes: int
    damaged: int = 0

    def __add__(self, later: ProductionReport) -> ProductionReport:
        """Return both together; what was there is what was there first."""
        return ProductionReport(
            shards_written=self.shards_written + later.shards_written,
            already_there=self.already_there,
            samples=self.samples + later.samples,
            expert_forwards=self.expert_forwards + later.expert_forwards,
            seconds=self.seconds + later.seconds,
            dropped_attributes=self.dropped_attributes + later.dropped_attributes,
            damaged=self.damaged + later.damaged,
        )


def produce(
    spec: ExpertSpec,
    shards: Sequence[Items],
    targets: Targets,
    on_progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> ProductionReport:
    """Compute the missing shards, in order, on `targets.min_actors` to `max_actors` actors.

    `on_progress` gets (existing shards, all shards) after each one, and `stop` says then whether to end with the current shards.
    Neither the number of actors nor an interruption changes a byte. Raises ProductionError.
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
            if stop is not None and stop():
                break
    return ProductionReport(
        shards_written=sum(row["written"] for row in rows),
        already_there=already_there,
        samples=sum(row["samples"] for row in rows),
        expert_forwards=sum(row["forwards"] for row in rows),
        seconds=time.monotonic() - started,
        dropped_attributes=sum(row["dropped"] for row in rows),
    )


class BackgroundProducer:
    """Runs `produce` in a thread of the driver while training runs; a context manager that stops it at the end.

    To the end it computes shards again that readers set aside as damaged. If it fails, the store's failure marker of `run_id`
    tells the waiting readers why. Raises DiskFullError if the store takes no such marker.
    """

    def __init__(
        self, spec: ExpertSpec, shards: Sequence[Items], targets: Targets, run_id: str, on_progress: Progress | None = None
    ) -> None:
        self._store, self._shards = target_store(spec, targets.folder), shards
        self._marker = self._store.failure_marker(run_id)
        self._marker.unlink(missing_ok=True)
        # A full disk takes no new file. It does take a new name for one that was there before.
        self._prepared = self._marker.with_suffix(".prepared")
        write_json(self._prepared, {"sentence": f"the producer of targets failed, and the disk of {targets.folder} is full"})
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._report: ProductionReport | None = None
        self._error: Exception | None = None
        # A daemon, since a thread that waits for CPUs which never become free must not keep the driver alive.
        work = partial(produce, spec, shards, targets, on_progress)
        self._thread = threading.Thread(target=self._run, args=(work,), name="targets", daemon=True)
        self._thread.start()

    def __enter__(self) -> BackgroundProducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or issubclass(kind, Exception):
            self.stop()
        else:  # the process is told to end, and may have seconds for it
            self._stopped.set()

    def join(self) -> ProductionReport:
        """Wait until no shard is missing, or for the end. Raises what `produce` raised."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report

    def stop(self) -> None:
        """End after the current shards, waiting half a minute for them. Written shards stay."""
        self._stopped.set()
        self._thread.join(timeout=30)
        self._prepared.unlink(missing_ok=True)

    def _run(self, work: Callable[[Callable[[], bool]], ProductionReport]) -> None:
        try:
            while not self._stopped.is_set():
                damaged = self._store.damaged(self._shards)
                for path in damaged:
                    path.unlink(missing_ok=True)  # from here on it is missing, as one that was never computed
                if damaged or not self._ended.is_set():
                    report = replace(work(self._interrupted), damaged=len(damaged))
                    self._report = self._report + report if self._report else report
                if not self._interrupted():
                    self._ended.set()
                    self._stopped.wait(LOOK_EVERY_SECONDS)
        except Exception as error:  # any exception must cross the thread: join() raises it, and readers stop with it
            self._error = error
            self._tell(str(error) if isinstance(error, ProductionError) else f"the producer of targets failed: {error!r}")
        finally:
            self._ended.set()

    def _interrupted(self) -> bool:
        """Return whether to stop, or to begin again with a shard that a reader waits for now."""
        return self._stopped.is_set() or bool(self._store.damaged(self._shards))

    def _tell(self, sentence: str) -> None:
        """Leave the failure marker."""
        try:
            write_json(self._marker, {"sentence": sentence})
        except (DiskFullError, OSError):
            os.replace(self._prepared, self._marker)


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
        path = self._store.path(items)
        forwards, dropped, error = self._expert.forwards, self._expert.dropped_attributes, ""
        # Another run on the same store may have written it since it was found missing.
        written = not path.exists()
        try:
            if written:
                tensors = self._expert(items, row["images"])
                self._store.write(items, tensors, {"dropped_attributes": self._expert.dropped_attributes - dropped})
        except (PictureError, TargetStoreError, DiskFullError) as problem:
            error = str(problem)
        status = {
            "shard": path.stem,
            "written": written,
            "samples": len(items) if written else 0,
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
        # This task mostly waits for the disk. It must not wait for a share of the CPUs that actors and trainers have taken.
        num_cpus=0,
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

"""The driver's side of one training: check it, hand it to Ray Train, read the result."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from cpo_ray.config import Optimization
from cpo_ray.config.section import free_on_resume
from cpo_ray.core.files import read_json, read_log, write_json
from cpo_ray.core.progress import Tell, in_words
from cpo_ray.models.bases.source import anywhere
from cpo_ray.training.artifacts.checkpoint import step_back
from cpo_ray.training.artifacts.ledger import ledger_problem, whole_until
from cpo_ray.training.artifacts.records import METRICS, RESULT, SETTINGS
from cpo_ray.training.health import winner_warning
from cpo_ray.training.worker import ADAPTER, TrainSpec, WorkerResult, train_loop

_KEPT_CHECKPOINTS = 2
_LOOK_EVERY_SECONDS = 2.0
_GROUP_SECONDS = 1800
#: After so long without a step, people want to know why.
_QUIET_SECONDS = 600.0
#: A disk with less than this free takes no file of a training.
_FULL_BYTES = 16_000_000


class TrainingError(ValueError):
    """The training cannot start, or its workers failed."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    `trained_steps` counts the steps of this call; 0 means that nothing was left to train. `ledger_problem` is None if each
    planned item was trained exactly as often as planned. `warnings` are sentences about its numbers.
    """

    adapter: Path
    steps: int
    trained_steps: int
    metrics: dict[str, float]
    ledger_problem: str | None
    warnings: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The result as a sentence for people."""
        if self.trained_steps == 0:
            return f"nothing was left to train: all {self.steps} steps were done before; the weights are in {self.adapter}"
        return f"trained {self.trained_steps} of {self.steps} steps; the weights are in {self.adapter}"


def train(
    spec: TrainSpec,
    on_progress: Tell | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> TrainResult:
    """Run a training to its end, or with `resume` continue it; needs a connected Ray.

    From threads of their own, `on_progress` gets (finished steps, all steps) every few seconds, and `on_warning` gets what looks
    wrong without stopping a training, once. Raises TrainingError if the output folder holds another training, the cluster is too
    small or the workers fail too often; TrainingHealthError if the numbers go wrong; ExportError if the written weights are not
    the trained ones.
    """
    if (done := finished(spec)) is not None:
        return done
    check_resources(spec.optimization)
    storage = spec.output.absolute() / spec.run_id
    if (told := step_back(storage, whole_until(spec.output))) and on_warning is not None:
        on_warning(told)
    write_json(spec.output / SETTINGS, _settings(spec))
    trainer = _trainer(spec)
    with _followed(spec, on_progress, on_warning) as warned:
        try:
            # In another thread: in the main one Ray Train would answer to Ctrl-C itself, and end the process without a word.
            with ThreadPool(1) as thread:
                worker: WorkerResult = thread.apply(trainer.fit).return_value
        except TrainingFailedError as error:
            full = shutil.disk_usage(spec.output).free < _FULL_BYTES
            raise TrainingError(
                f"training {spec.run_id!r} failed {spec.optimization.max_failures + 1} times, at last with: {_last_line(error)}; "
                + (f"the disk of {spec.output} is full; " if full else "")
                + "resume it once the cause is gone"
            ) from error
    warnings = tuple(filter(None, (_winner_warning(spec), *worker.warnings)))
    for warning in warnings:
        if on_warning is not None and warning not in warned:
            on_warning(warning)
    if worker.failure is not None:
        raise worker.failure
    if on_progress is not None:
        on_progress(spec.plan.steps, spec.plan.steps)
    result = TrainResult(
        adapter=spec.output / ADAPTER,
        steps=worker.last_step,
        trained_steps=worker.last_step - worker.first_step,
        metrics=worker.metrics,
        ledger_problem=ledger_problem(spec.plan, spec.output),
        warnings=warnings,
    )
    write_json(spec.output / RESULT, {k: v for k, v in asdict(result).items() if k != "adapter"})
    return result


def finished(spec: TrainSpec) -> TrainResult | None:
    """Return the result of a training that an earlier call has finished. Raises TrainingError as `train` does."""
    _check_output(spec)
    record = spec.output / RESULT
    return TrainResult(spec.output / ADAPTER, **(read_json(record) | {"trained_steps": 0})) if record.exists() else None


def check_resources(optimization: Optimization) -> None:
    """Raise TrainingError if the cluster can never hold the workers; Ray would wait for ever."""
    cluster = ray.cluster_resources()
    for name, each in (("CPU", optimization.cpus_per_worker), ("GPU", optimization.gpus_per_worker)):
        wanted, there = optimization.workers * each, cluster.get(name, 0.0)
        if wanted > there:
            raise TrainingError(
                f"{optimization.workers} workers with {each:g} {name}s each need {wanted:g} {name}s, "
                f"and the cluster has {there:g}; "
                f"lower optimization.workers or {name.lower()}s_per_worker, or add nodes"
            )


@contextmanager
def _followed(spec: TrainSpec, on_progress: Tell | None, on_warning: Callable[[str], None] | None) -> Iterator[list[str]]:
    """Follow the lines that rank 0 writes, one per step, so that progress needs no message. Yields the warnings given."""
    told: list[str] = []
    ended, file = threading.Event(), spec.output / METRICS

    def follow() -> None:
        last, at = None, time.monotonic()
        while not ended.wait(_LOOK_EVERY_SECONDS):
            steps = read_log(file, skip_damaged=True)
            if len(steps) == last:
                if on_warning is not None and time.monotonic() - at > _QUIET_SECONDS:
                    on_warning(_quiet(spec))
                    at = math.inf  # once, until there is a step again
                continue
            last, at = len(steps), time.monotonic()
            if on_progress is not None and last < spec.plan.steps:
                # Steps wait for targets, which have their own counter.
                waited = sum(step.get("seconds_waited_for_targets", 0.0) for step in steps)
                on_progress(last, spec.plan.steps, file.stat().st_mtime - waited if steps else None)
            if on_warning is not None and not told and (warning := _winner_warning(spec)):
                told.append(warning)
                on_warning(warning)

    thread = threading.Thread(target=follow, name="steps", daemon=True)
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join()


def _quiet(spec: TrainSpec) -> str:
    """Say that there is no progress, and what a training may wait for."""
    shards, optimization = spec.shards or spec.plan.shards(spec.shard_size), spec.optimization
    free, there = ray.available_resources(), ray.cluster_resources()
    room = " and ".join(f"{free.get(name, 0.0):g} of {there[name]:g} {name}s" for name in ("CPU", "GPU") if name in there)
    missing = f"{len(spec.targets.missing(shards))} of {len(shards)} target shards are missing"
    each = f"{optimization.cpus_per_worker:g} CPUs and {optimization.gpus_per_worker:g} GPUs"
    return (
        f"no step has ended for {in_words(_QUIET_SECONDS)}: {missing}, and {room} are free, where "
        f"{optimization.workers} workers take {each} each; `ray status` tells what waits for room"
    )


def _winner_warning(spec: TrainSpec) -> str | None:
    """Return the warning about the steps logged so far; None for objectives without a winner."""
    steps = read_log(spec.output / METRICS, skip_damaged=True)
    errors = [metrics["win"] for metrics in steps if "win" in metrics]
    return winner_warning(errors, spec.objective)


def _check_output(spec: TrainSpec) -> None:
    """Compare with the training that was started in the output folder before."""
    record, settings = spec.output / SETTINGS, _settings(spec)
    if not record.exists():
        return
    if not spec.resume:
        raise TrainingError(f"{spec.output} already holds a training; resume it, or give the run another name")
    before = read_json(record)
    # A setting that is newer than the training is compared by whoever has the whole configuration, with its default.
    differing = [key for key in settings if key in before and before[key] != settings[key]]
    if differing:
        key = differing[0]
        raise TrainingError(
            f"{spec.output} was started with {key} = {before[key]!r}, and is now to be resumed with {settings[key]!r}; "
            "resume with the settings it was started with, or give the run another name "
            "(workers, their resources, micro_batch and zero_stage may change)"
        )


def _settings(spec: TrainSpec) -> dict[str, Any]:
    """Return everything that a resume may not change. Steps and epochs are part of the plan."""
    sections = {
        "model": spec.model.model_dump(mode="json"),
        "lora": spec.lora.model_dump(mode="json"),
        "objective": spec.objective.model_dump(mode="json"),
        "optimization": spec.optimization.model_dump(mode="json", exclude={"steps", "epochs", *free_on_resume(Optimization)}),
    }
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {
        **flat,
        "run_id": spec.run_id,
        "seed": spec.seed,
        "plan": spec.plan.fingerprint(),
        "targets": spec.targets.fingerprint,
    }


def _trainer(spec: TrainSpec) -> TorchTrainer:
    """Return what runs `train_loop` on every worker, again after a failure, from where Ray Train knows of a checkpoint."""
    optimization = spec.optimization
    on_gpu = optimization.gpus_per_worker > 0
    resources = {"CPU": optimization.cpus_per_worker} | ({"GPU": optimization.gpus_per_worker} if on_gpu else {})
    return TorchTrainer(
        train_loop,
        # In bytes, since Ray Train's controller only passes it on, and would import MLflow to unpack it.
        train_loop_config={"spec": cloudpickle.dumps(replace(spec, model=anywhere(spec.model)))},
        # While one rank waits for a target shard, the others wait for it in a collective call.
        torch_config=TorchConfig(
            backend="nccl" if on_gpu else "gloo", timeout_s=_GROUP_SECONDS + math.ceil(spec.timeout_seconds)
        ),
        scaling_config=ScalingConfig(num_workers=optimization.workers, use_gpu=on_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=spec.run_id,  # Ray Train resumes a run of the same name in the same place
            storage_path=str(spec.output.absolute()),
            failure_config=FailureConfig(max_failures=optimization.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
        ),
    )


def _last_line(error: TrainingFailedError) -> str:
    """Return the message at the end of a worker's traceback."""
    return str(error).strip().splitlines()[-1]

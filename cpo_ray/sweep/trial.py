"""One trial: the training of stage 2 as every job runs it, on shared targets, measured on its way.

Ray Tune calls `run_trial` in a process of the trial's own, which starts the training and holds next to nothing itself. At each of
its checkpoints the trainer leaves its weights, a shared `Measurer` draws with them, and the numbers go to the search.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cpo_ray.config import Config
from cpo_ray.config.sweep.searched import Point
from cpo_ray.core.files import read_json
from cpo_ray.core.locks import locked
from cpo_ray.core.plan import Plan
from cpo_ray.evaluation.generate import grid
from cpo_ray.models.bases.source import base_source
from cpo_ray.run import Run
from cpo_ray.stages import training_spec
from cpo_ray.sweep.measure import save_pictures
from cpo_ray.sweep.records import TRIALS, Rung, Trial, read_rungs, read_trial, rung_file, save_rung
from cpo_ray.sweep.space import label, point_config, rung_steps, trial_id
from cpo_ray.targets.store import Items, TargetStore
from cpo_ray.tracking import MetricLogger, RunTracker
from cpo_ray.training.artifacts.export import ExportError
from cpo_ray.training.driver import TrainResult, train
from cpo_ray.training.health import TrainingHealthError
from cpo_ray.training.worker import HELD_OUT, SNAPSHOTS, TrainSpec, snapshot_folder

LOOK_EVERY_SECONDS = 0.5


class DivergedError(ValueError):
    """The trial's own numbers ended it. Starting again would end the same way."""


@dataclass(frozen=True)
class Bench:
    """What all trials of a sweep share; it travels to each of them.

    run: the sweep's own, with absolute paths. shards hold every item of every trial and those of `held_out`.
    """

    run: Run
    rungs: int
    targets: TargetStore
    shards: tuple[Items, ...]
    held_out: Plan
    measurers: tuple[Any, ...]
    """Handles of `Measurer` actors."""


def run_trial(parameters: dict[str, Any], bench: Bench) -> None:
    """Train a point to its end and report each rung to Tune. Nothing done before, in this call or another, is repeated.

    Raises DivergedError, and whatever the training raises.
    """
    point: Point = parameters["point"]
    folder = Trial(point).folder(bench.run.folder)
    with alone(folder):
        trial = read_trial(folder) or Trial(point)
        if trial.status == "diverged":
            raise DivergedError(trial.sentence)
        if trial.status != "finished":
            _run_to_its_end(trial, folder, bench)
        else:
            for number, rung in enumerate(read_rungs(folder), start=1):
                tune.report(_report(number, rung))


def _run_to_its_end(trial: Trial, folder: Path, bench: Bench) -> None:
    """Train, measure at the rungs, keep the adapter in MLflow."""
    config, started = point_config(bench.run.config, trial.point), time.monotonic()
    tracker = _tracker(trial, folder, config, bench)
    trial = replace(trial, status="running", sentence="", mlflow_run_id=tracker.run_id)
    trial.save(bench.run.folder)
    spec = trial_spec(bench, config, trial.point, tracker)
    training = in_background(train, spec)
    report: dict[str, Any] = {}
    try:
        with tracker.start() as logger:
            for number, rung in _rungs(bench, spec, folder, training, tracker, logger):
                report = _report(number, rung)
                if rung.step < spec.plan.steps:
                    tune.report(report)
        result = training.result()
    except (TrainingHealthError, ExportError) as error:
        trial.ended("diverged", str(error)).save(bench.run.folder)
        raise DivergedError(str(error)) from error
    # A training that was killed and goes on from an earlier step writes a snapshot again that was measured already.
    shutil.rmtree(spec.output / SNAPSHOTS, ignore_errors=True)
    tracker.log_adapter(result.adapter, base_source(config.model), config.model.revision)
    ended = replace(trial, seconds=trial.seconds + time.monotonic() - started)
    ended.ended("finished", result.ledger_problem or "").save(bench.run.folder)
    ended.remove_checkpoints(bench.run.folder)
    tracker.finish()
    tune.report(report)  # at last, since a scheduler may end the process in answer


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a point. If a search suggests it twice, the second trial waits and finds the first one's
    results.
    """
    with locked(folder / ".lock"):
        yield


def _tracker(trial: Trial, folder: Path, config: Config, bench: Bench) -> RunTracker:
    """Return the trial's own MLflow run below the sweep's: the one that it had before, if it was begun."""
    run = replace(bench.run, config=config)
    if trial.mlflow_run_id is None:
        note = run.told_of(run.alignment(config.preference.objective))
        return run.track(label(trial.point), folder, resume=False, note=note)
    tracker = replace(run.tracker, run_id=trial.mlflow_run_id, folder=folder)
    tracker.reopen()
    return tracker


def _report(number: int, rung: Rung) -> dict[str, float]:
    """Return what Tune, its searches and its schedulers are told."""
    return {"rung": number, "step": rung.step, **rung.metrics()}


def trial_spec(bench: Bench, config: Config, point: Point, tracker: RunTracker) -> TrainSpec:
    """Return the training of a point: what `jobs/train_cpo.py` would train with this configuration, on the shared shards."""
    run = replace(bench.run, config=config)
    training = run.alignment(config.preference.objective)
    every, _ = rung_steps(training.plan.steps, bench.rungs)
    optimization = training.optimization.model_copy(update={"checkpoint_every": every})
    training = replace(training, name=trial_id(point), optimization=optimization)
    spec = training_spec(replace(run, folder=run.folder / TRIALS), training, bench.targets, tracker)
    return replace(spec, shards=bench.shards, held_out=bench.held_out, snapshots=True, resume=True)


def in_background(function: Callable[..., TrainResult], *arguments: Any) -> Future[TrainResult]:
    """Call in a daemon thread. When Tune stops a trial, its process must not wait for the training to end."""
    result: Future[TrainResult] = Future()

    def work() -> None:
        try:
            result.set_result(function(*arguments))
        except Exception as error:  # whatever it is must cross the thread: result() raises it
            result.set_exception(error)

    threading.Thread(target=work, name="training", daemon=True).start()
    return result


def _rungs(
    bench: Bench, spec: TrainSpec, folder: Path, training: Future[TrainResult], tracker: RunTracker, logger: MetricLogger
) -> Iterator[tuple[int, Rung]]:
    """Yield every rung of the trial with its number from 1; measured rungs are read. Raises what the training raised."""
    measured = {rung.step: rung for rung in read_rungs(folder)}
    measurer = bench.measurers[int(folder.name, 16) % len(bench.measurers)]  # the id is a hash, so each gets its share
    for number, step in enumerate(rung_steps(spec.plan.steps, bench.rungs)[1], start=1):
        if step not in measured:
            found = weights_at(spec, step, training)
            if found is None:
                continue
            weights, held_out = found
            values, pictures = ray.get(measurer.measure.remote(weights))
            measured[step] = Rung(step, held_out, values)
            save_pictures(pictures, rung_file(folder, step).with_suffix(""))
            tracker.log_pictures("validation", grid(pictures, 4), step)
            logger.log(step, measured[step].metrics())
            save_rung(folder, measured[step])
        shutil.rmtree(snapshot_folder(spec, step), ignore_errors=True)
        yield number, measured[step]


def weights_at(spec: TrainSpec, step: int, training: Future[TrainResult]) -> tuple[Path, dict[str, float]] | None:
    """Wait for the weights after `step` steps and return them with the metrics on held-out targets.

    A training that ended without this snapshot, since somebody removed it, still has its final weights. An earlier step cannot be
    measured any more.
    """
    snapshot = snapshot_folder(spec, step)
    while not snapshot.exists():
        if training.done() and not snapshot.exists():
            adapter = training.result().adapter
            return (adapter, {}) if step == spec.plan.steps else None
        time.sleep(LOOK_EVERY_SECONDS)
    return snapshot, read_json(snapshot / HELD_OUT)

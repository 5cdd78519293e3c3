"""Run the trials under Ray Tune: who chooses points, who stops trials, and what is recorded when a trial ends."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from cpo_ray.config import Config
from cpo_ray.config.sweep import Sweep
from cpo_ray.config.sweep.axis import Axis
from cpo_ray.config.sweep.searched import Point
from cpo_ray.evaluation.scorers.base import Scorer, open_scorers
from cpo_ray.run import Run
from cpo_ray.session import release_reserved
from cpo_ray.sweep.measure import goals
from cpo_ray.sweep.placement import DRIVER_CPUS
from cpo_ray.sweep.records import SETTLED, Trial, read_rungs, read_trial, read_trials
from cpo_ray.sweep.space import SearchSpace, label, listed_points, trial_id
from cpo_ray.sweep.trial import Bench, run_trial
from cpo_ray.tracking import Status as RunStatus

#: Which way a scorer is better → what Tune and Optuna call it.
_MODES = {"lower": "min", "higher": "max"}
_DIRECTIONS = {"lower": "minimize", "higher": "maximize"}
#: Optuna's own default: before this many results TPE draws at random.
_RANDOM_STARTS = 10
_STUDY = "sweep"


def run_trials(bench: Bench, sweep: Sweep, at_once: int) -> None:
    """Run the remaining points, as many at once as fit. Return when they have ended or the time is over.

    A failed trial is recorded as failed, and the others continue.
    """
    run = bench.run
    settled = [trial for trial in read_trials(run.folder) if trial.status in SETTLED]
    aims = goals(sweep, open_scorers(run.config))
    space, searcher, left = _points_left(run, sweep, settled, aims)
    run.say(f"{left} trials to run, {min(at_once, left)} at once; {len(settled)} are known already")
    if left <= 0:
        return
    # Our lines and MLflow say everything that Tune's tables and log files say.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    deadline = None if sweep.minutes is None else time.monotonic() + 60 * sweep.minutes
    trainable = tune.with_resources(tune.with_parameters(run_trial, bench=bench), {"CPU": DRIVER_CPUS})
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=left if searcher else 1,
            search_alg=searcher,
            scheduler=scheduler(sweep, aims),
            max_concurrent_trials=at_once,
            time_budget_s=None if sweep.minutes is None else 60 * sweep.minutes,
            # Reusing a process saves its imports. A process whose trial was stopped cannot be reused.
            reuse_actors=sweep.scheduler == "none",
        ),
        run_config=tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",  # a new one each time, since a resume reads our records only
            storage_path=str(run.folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            callbacks=[_Witness(run, deadline)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        release_reserved()  # reserved by trials that ran out of time before their workers started


def _points_left(
    run: Run, sweep: Sweep, settled: Sequence[Trial], aims: Sequence[Scorer]
) -> tuple[dict[str, Any], OptunaSearch | None, int]:
    """Return (the points in Tune's order or the search that suggests them, the number of trials left)."""
    if sweep.search in ("grid", "random"):
        known = {trial.id for trial in settled}
        points = [point for point in listed_points(run.config) if trial_id(point) not in known]
        return {"point": tune.grid_search(points)}, None, len(points)
    assert sweep.trials is not None
    told = [(trial.point, values) for trial in settled if (values := _values(run, trial, aims))]
    return {}, optuna_search(run.config, told, aims), sweep.trials - len(settled)


def scheduler(sweep: Sweep, aims: Sequence[Scorer]) -> TrialScheduler:
    """Return the scheduler that stops trials by the first goal, at the rungs that they have reached."""
    if sweep.scheduler == "asha":
        return ASHAScheduler(
            time_attr="rung",
            metric=aims[0].name,
            mode=_MODES[aims[0].better],
            max_t=sweep.rungs + 1,  # a trial that reaches this rung ends by itself
            grace_period=sweep.grace_rungs,
            reduction_factor=2,
        )
    if sweep.scheduler == "median":
        return MedianStoppingRule(
            time_attr="rung",
            metric=aims[0].name,
            mode=_MODES[aims[0].better],
            grace_period=sweep.grace_rungs,
            min_time_slice=sys.maxsize,  # otherwise it would pause a trial to let others catch up, at the cost of another start
        )
    return FIFOScheduler()


class PointSearch(OptunaSearch):
    """Optuna's search with whole points as suggestions, in the form in which a grid gives them to Tune."""

    def __init__(self, space: SearchSpace, **settings: Any) -> None:
        super().__init__(distributions(space.axes), **settings)
        self._searched = space

    def suggest(self, trial_id: str) -> dict[str, Point]:
        return {"point": self._searched.point(super().suggest(trial_id))}


def optuna_search(config: Config, told: Sequence[tuple[Point, Sequence[float]]], aims: Sequence[Scorer]) -> PointSearch:
    """Return a TPE search that knows the goals' values of earlier trials; both count in a search for two objectives."""
    sweep, space = config.sweep, SearchSpace(config)
    assert sweep is not None
    counted = aims if sweep.search == "multi_objective" else aims[:1]
    known, storage = distributions(space.axes), optuna.storages.InMemoryStorage()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [_DIRECTIONS[aim.better] for aim in counted]
    study = optuna.create_study(storage=storage, study_name=_STUDY, directions=directions)
    for point, values in told:
        kinds = {name: known[name] for name in point}
        study.add_trial(optuna.trial.create_trial(params=point, distributions=kinds, values=list(values)[: len(counted)]))
    # With the seed alone a resumed sweep would draw its first points again.
    starts = min(_RANDOM_STARTS, max(2, (sweep.trials or 0) // 3))
    sampler = optuna.samplers.TPESampler(seed=config.run.seed + len(told), n_startup_trials=starts)
    metrics, modes = [aim.name for aim in counted], [_MODES[aim.better] for aim in counted]
    metric, mode = (metrics, modes) if len(counted) > 1 else (metrics[0], modes[0])
    return PointSearch(space, metric=metric, mode=mode, sampler=sampler, study_name=_STUDY, storage=storage)


def distributions(axes: Mapping[str, Axis]) -> dict[str, BaseDistribution]:
    """Return the axes in Optuna's form."""
    return {name: _distribution(axis) for name, axis in axes.items()}


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.values:
        return CategoricalDistribution(axis.values)
    if isinstance(axis.least, int):
        return IntDistribution(axis.least, int(axis.largest), log=axis.log)
    return FloatDistribution(axis.least, axis.largest, log=axis.log)


def _values(run: Run, trial: Trial, aims: Sequence[Scorer]) -> tuple[float, ...] | None:
    """Return a trial's goals as far as known; None for one that diverged before it was measured."""
    rungs = read_rungs(trial.folder(run.folder))
    measured = rungs[-1].measured if rungs else None
    return None if measured is None or trial.status == "diverged" else tuple(measured.means[aim.name] for aim in aims)


class _Witness(tune.Callback):
    """Reports each trial's state, and records the trials that could not do so themselves: stopped, crashed, out of time."""

    def __init__(self, run: Run, deadline: float | None) -> None:
        self._run, self._deadline = run, deadline
        self._scorers = open_scorers(run.config)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: Mapping[str, Any], **_: Any
    ) -> None:
        known = (scorer for scorer in self._scorers if scorer.name in result)
        measured = ", ".join(f"{scorer.name} {scorer.text(result[scorer.name])}" for scorer in known)
        self._run.say(f"{label(_point(trial))}: step {result['step']}{': ' if measured else ''}{measured}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        record = self._record(trial)
        if record.status != "running":
            return
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._end(record, "KILLED")  # its record stays as it is, and it continues with --resume
        else:
            self._run.say(f"{label(record.point)}: stopped, since it fell behind")
            self._end(record.ended("stopped", "it fell behind the others"), "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        record = self._record(trial)
        if record.status != "diverged":
            error = trial.get_error()
            record = record.ended("failed", str(error).strip().splitlines()[-1] if error else "it crashed")
        self._run.say(f"{label(record.point)}: {record.status}: {record.sentence}")
        self._end(record, "FAILED")

    def _record(self, trial: TuneTrial) -> Trial:
        fresh = Trial(_point(trial))
        return read_trial(fresh.folder(self._run.folder)) or fresh

    def _end(self, record: Trial, status: RunStatus) -> None:
        record.save(self._run.folder)
        folder = record.folder(self._run.folder)
        replace(self._run.tracker, run_id=record.mlflow_run_id, folder=folder).finish(status)


def _point(trial: TuneTrial) -> Point:
    point: Point = trial.config["point"]
    return point

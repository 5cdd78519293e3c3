"""The sweep, step by step: one expert, one set of targets, many trials, one choice.

    expert θ1 ─► targets of all trials, computed once ─► Ray Tune: trials beside each other ─► front, choice, best.toml, report

What a finished trial leaves in its folder is all that a resumed sweep needs to know of it; Tune's own files are never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from cpo_ray.config import Config, ConfigError
from cpo_ray.config.sweep import Sweep
from cpo_ray.core.progress import ProgressLine
from cpo_ray.evaluation.domain import Picture, open_domain
from cpo_ray.evaluation.measure import Measured
from cpo_ray.evaluation.rounds import validation_round
from cpo_ray.evaluation.scorers.base import open_scorers
from cpo_ray.models.bases.source import anywhere
from cpo_ray.objectives import objective_of
from cpo_ray.preflight.checks import check
from cpo_ray.preflight.findings import Finding
from cpo_ray.preflight.machine import available
from cpo_ray.preflight.trials import Trials
from cpo_ray.recipes import expert_spec
from cpo_ray.run import Run, opened
from cpo_ray.session import connect
from cpo_ray.stages import check_obedience, told, train_expert
from cpo_ray.sweep.items import sweep_items
from cpo_ray.sweep.measure import Measurer, goals, save_pictures
from cpo_ray.sweep.outcome import BASE, conclude
from cpo_ray.sweep.placement import Room, demand, refusal, trials_at_once
from cpo_ray.sweep.records import Rung, read_rungs, read_trials, rung_file, save_rung
from cpo_ray.sweep.space import SearchSpace, label, listed_points, point_config
from cpo_ray.sweep.trial import Bench
from cpo_ray.sweep.tuner import run_trials
from cpo_ray.targets.expert import target_store
from cpo_ray.targets.producer import BackgroundProducer, ProductionReport
from cpo_ray.targets.reader import check_views
from cpo_ray.tracking import resolve_uri


def search(config: Config, resume: bool = False) -> ProductionReport:
    """Run every trial of the configuration's sweep that is left, then choose and report; returns what the targets took.

    Raises ConfigError, before anything starts, for a sweep that is not described, cannot be measured or cannot be placed.
    """
    sweep = _section(config)
    connect()
    machines = _machines()
    if problem := refusal(machines, demand(config)):
        raise ConfigError(problem)
    trials = planned_trials(config, sweep, machines)
    with opened(config, resume, trials) as begun:
        run = _with_absolute_paths(begun)
        _check_measurements(run, sweep)
        train_expert(run)
        check_obedience(run)
        frozen = expert_spec(run.config, run.adapter)
        targets = target_store(frozen, run.config.targets.folder)
        shards, held_out = sweep_items(run.config, run.pictures)
        tell = ProgressLine(run.config.run.name).counter("targets", run.config.targets.max_actors)
        arguments = frozen, shards, run.config.targets, run.config.run.name, tell
        with targets.in_use(), BackgroundProducer(*arguments) as producer:
            report = producer.join()
            run.say(told(report))
            measurers = _measurers(run, sweep)
            try:
                base = None if read_rungs(run.folder / BASE) else measurers[0].measure.remote(None)
                run_trials(Bench(run, sweep.rungs, targets, shards, held_out, measurers), sweep, trials.at_once)
                if base is not None:
                    _save_base(run, *ray.get(base))
            finally:
                for measurer in measurers:
                    ray.kill(measurer)
        conclude(run, sweep, report)
    return report


def findings(config: Config) -> list[Finding]:
    """Return what `--check` says: everything that a run needs, and whether a trial fits."""
    sweep = _section(config)
    try:
        there = available()
    except OSError:
        return check(config)  # which says so
    machine = [Room(there.cpus, there.gpus)]
    if problem := refusal(machine, demand(config)):
        return [*check(config), Finding("missing", problem)]
    trials = planned_trials(config, sweep, machine)
    return [
        *check(config, trials),
        Finding("ok", f"sweep: {trials.count} trials by search {sweep.search!r}, {trials.at_once} at once"),
    ]


def planned_trials(config: Config, sweep: Sweep, machines: Sequence[Room]) -> Trials:
    """Return how many trials there are, how many of them fit on the machines at once, and what they are.

    A finished trial leaves no checkpoints; one that a scheduler has stopped leaves them to the end of the sweep.

    Raises ConfigError where the values of a trial do not go together.
    """
    space = SearchSpace(config)
    listed = listed_points(config) if sweep.search in ("grid", "random") else None
    count = len(listed) if listed is not None else sweep.trials or 0
    at_once = min(count, trials_at_once(machines, demand(config), sweep.max_concurrent or count))
    checkpointed = at_once if sweep.scheduler == "none" else count
    return Trials(
        count,
        at_once,
        checkpointed,
        drawn=(1 + count * sweep.rungs) * sweep.pictures,
        tried={label(point): point_config(config, point) for point in (space.ends() if listed is None else listed)},
        largest={label(point): point_config(config, point) for point in space.largest()},
    )


def _section(config: Config) -> Sweep:
    """Raises ConfigError for a configuration that describes no sweep, or one that cannot be judged."""
    sweep = config.sweep
    if sweep is None:
        raise ConfigError("the configuration has no [sweep] section; jobs/configs/toy_sweep.toml has a complete one")
    for trial in (point_config(config, point) for point in SearchSpace(config).ends()):
        objective = objective_of(trial.preference.objective)
        check_views(objective)
        if not objective.calls_expert:
            raise ConfigError(
                f"the trials of a sweep share the expert's outputs, and objective {objective.name!r} reads none; "
                "choose another preference.objective"
            )
    by_scores = sweep.search in ("tpe", "multi_objective") or sweep.scheduler != "none"
    if not goals(sweep, open_scorers(config)) and by_scores:
        raise ConfigError(
            f"search {sweep.search!r} with scheduler {sweep.scheduler!r} goes by scores, and nothing scores pictures here "
            f"(domain.use = {config.domain.use!r}, sweep.goals = {list(sweep.goals)}); name a domain or evaluation.scorers, "
            'or use search = "grid" or "random" with scheduler = "none" and look at the pictures'
        )
    return sweep


def _check_measurements(run: Run, sweep: Sweep) -> None:
    """Raises ConfigError where what a resumed sweep has measured lacks a score that it goes by now."""
    aims = {aim.name for aim in goals(sweep, open_scorers(run.config))}
    for folder in (run.folder / BASE, *(trial.folder(run.folder) for trial in read_trials(run.folder))):
        for rung in read_rungs(folder):
            if missing := aims - (rung.measured.means.keys() if rung.measured else set()):
                raise ConfigError(
                    f"{folder} was measured without {', '.join(sorted(missing))}, which the sweep is to go by now; give it the "
                    "evaluation.scorers that it was begun with, or another run.name"
                )


def _machines() -> list[Room]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Room(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in nodes]


def _with_absolute_paths(run: Run) -> Run:
    """The run with absolute paths: a trial's process does not work in the driver's folder."""
    tree, tracking = _absolute(run.config.model_dump(exclude_unset=True)), run.config.tracking
    tree["model"]["base"] = anywhere(run.config.model).base
    if scorers := run.config.evaluation.scorers:
        tree["evaluation"]["scorers"] = [told.on_other_machines() for told in scorers]
    tree["domain"] = run.config.domain.on_other_machines()
    if tracking.uri:
        tree["tracking"]["uri"] = resolve_uri(tracking, run.config.run.output)
    return replace(run, config=Config.model_validate(tree))


def _absolute(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _absolute(value) for key, value in values.items()}
    return values.absolute() if isinstance(values, Path) else values


def _measurers(run: Run, sweep: Sweep) -> tuple[Any, ...]:
    """The actors that draw and measure, placed before any trial takes the room; a restarted one loads what it needs again."""
    evaluation = run.config.evaluation
    asked = validation_round(run.config, run.dataset, open_domain(run.config.domain, run.tree), sweep.pictures)
    remote = ray.remote(Measurer).options(
        num_cpus=evaluation.cpus_per_actor, num_gpus=evaluation.gpus_per_actor, max_restarts=2, max_task_retries=2
    )
    return tuple(remote.remote(run.config, asked) for _ in range(evaluation.actors))


def _save_base(run: Run, measured: Measured | None, pictures: list[Picture]) -> None:
    """Keep what the trials are compared with."""
    save_pictures(pictures, rung_file(run.folder / BASE, 0).with_suffix(""))
    save_rung(run.folder / BASE, Rung(0, {}, measured))

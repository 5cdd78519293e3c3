"""Compare what a run needs with what exists: memory by role, disk, time, answers about pictures, and the ratio of target to
training GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cpo_ray.config import Config, ConfigError
from cpo_ray.core.progress import in_words
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.domain import open_domain
from cpo_ray.evaluation.rounds import read_prompts
from cpo_ray.hierarchy import Hierarchy
from cpo_ray.preflight import disk
from cpo_ray.preflight.durations import evaluation_seconds, ideal_ratio, stages, total
from cpo_ray.preflight.findings import Finding, Verdict
from cpo_ray.preflight.machine import Resources, rate, stated
from cpo_ray.preflight.memory import PROCESS, SCORING, Need, roles
from cpo_ray.preflight.remedies import remedy, room
from cpo_ray.preflight.trials import Trials


def plan_findings(
    config: Config, base: Path | None, found: Resources, pictures: int, trials: Trials | None = None
) -> Iterator[Finding]:
    """Return the plan for a base in a folder (or the published base of its family) and a number of training pictures (0:
    unknown).

    With `trials` it is the plan of a sweep, whose trials all take as much as the largest of them. Nothing is loaded or started;
    counting the models on the meta device takes some seconds.
    """
    if trials is not None:
        name, config = max(trials.largest.items(), key=lambda trial: _stage_two(trial[1], base).bytes)
        yield Finding("ok", f"all trials are planned for as {name}", True)
    try:
        resources = stated(config.machine, found)
    except ConfigError as error:
        yield Finding("missing", str(error))
        return
    if base is None:
        published = f"the published base of the family {config.model.family!r}"
        yield Finding("note", f"{config.model.base} is not on this machine; it is planned for as {published}", True)
    needs = {}
    for section, role in roles(config, sweep=trials is not None):
        need = needs[section] = role(config, base)
        verdict, space = _verdict(need, resources)
        advice = ""
        if verdict == "missing" and resources.gpu_bytes:
            where = "evaluation" if section == SCORING else section
            advice = f"; {remedy(config, base, where, role, resources.gpu_bytes)}"
        yield Finding(verdict, f"{need.role} takes {need.bytes / 1e9:.1f} GB {space}: {need}{advice}", True)
    yield _main_memory(config, needs, resources, trials)
    yield _disk(config, base, pictures, trials)
    if pictures:
        yield from _time(config, base, pictures, resources, trials)
        if not trials:
            yield _ratio(config, base, pictures)


def reading_findings(config: Config, dataset: AnnotatedDataset, tree: Hierarchy, trials: Trials | None) -> Iterator[Finding]:
    """Say what keeps labels from being read from drawn pictures, and what reading them will take."""
    try:
        domain = open_domain(config.domain, tree)
    except ConfigError:
        return  # reported by another check
    if problem := domain.lacks():
        yield Finding("missing", f"domain: {problem}")
    if told := domain.cost(read_prompts(config, dataset, domain, trials.drawn if trials else None)):
        yield Finding("ok", f"domain: {told}", planned=True)


def _stage_two(config: Config, base: Path | None) -> Need:
    return dict(roles(config))["preference.optimization"](config, base)


def _verdict(need: Need, resources: Resources) -> tuple[Verdict, str]:
    """Compare a need with what exists, and return the verdict and its words."""
    if not need.gpus:
        return "ok", "of main memory"
    if resources.gpu_bytes is None:
        return "note", "of a GPU, of unknown size here (machine.gpu or machine.gpu_gigabytes states it)"
    here = room(need, resources.gpu_bytes)
    share = f"its share of {need.gpus:g} of a GPU," if need.gpus < 1 else "a GPU's"
    return ("ok" if need.bytes <= here else "missing"), f"of {share} {here / 1e9:.1f} GB"


def _main_memory(config: Config, needs: dict[str, Need], resources: Resources, trials: Trials | None) -> Finding:
    """Plan main memory for processes that run at the same time: targets beside training or before it, then the evaluation."""
    actors = needs.pop("targets").main_bytes
    drawing = needs.pop("evaluation").main_bytes
    scoring = needs.pop(SCORING).main_bytes if SCORING in needs else 0
    if trials:
        drawing += trials.at_once * (PROCESS + needs.pop("preference.optimization").main_bytes)  # each trial has a driver
    beside = actors if config.targets.overlap else 0
    most = max(actors, drawing, scoring, *(training.main_bytes + beside for training in needs.values()))
    sentence = f"all processes at a time take up to {most / 1e9:.1f} GB of main memory"
    if resources.main_bytes is None:
        return Finding("note", f"{sentence} where the run will be", True)
    sentence += f"; {resources.main_bytes / 1e9:.1f} GB are {resources.where}"
    if most <= resources.main_bytes:
        return Finding("ok", sentence, True)
    change = "lower workers, actors, micro_batch or shard_size, set targets.overlap = false, or add machines"
    return Finding("missing", f"{sentence}; {change}", True)


def _disk(config: Config, base: Path | None, pictures: int, trials: Trials | None) -> Finding:
    """Plan disk: targets in their folder, checkpoints and exports in the run's folder, or their sum if both are on one disk."""
    checkpoints, exports = disk.training_bytes(config, base, trials)
    targets = disk.target_bytes(config, base, pictures)
    wanted, folders = [targets, checkpoints + exports], [config.targets.folder, config.run.output]
    if disk.existing(folders[0]).stat().st_dev == disk.existing(folders[1]).stat().st_dev:
        wanted, folders = [sum(wanted)], folders[:1]
    free = [disk.free_bytes(folder) for folder in folders]
    there = " and ".join(f"{space / 1e9:.1f} GB are free at {folder}" for space, folder in zip(free, folders, strict=True))
    shards = f"{targets / 1e9:.2f} GB" if pictures else "what shows once the data is there"
    sentence = f"targets take up to {shards}, checkpoints {checkpoints / 1e9:.2f} GB, exports {exports / 1e9:.2f} GB; {there}"
    if all(size <= space for size, space in zip(wanted, free, strict=True)):
        return Finding("ok", sentence, True)
    if config.folder.exists():
        return Finding("note", f"{sentence}, beside what this run has written already", True)
    return Finding("missing", f"{sentence}; lower targets.draws, or set targets.folder and run.output to a larger disk", True)


def _time(config: Config, base: Path | None, pictures: int, resources: Resources, trials: Trials | None) -> Iterator[Finding]:
    """Plan steps, and seconds if a rate is known. Start-up and reading are not counted."""
    uses = [config.targets.gpus_per_actor, config.preference.optimization.gpus_per_worker, config.evaluation.gpus_per_actor]
    found = rate(config.machine, resources, on_gpu=any(uses))
    flop_per_second, source = found or (1.0, "")
    planned = stages(config, base, pictures, flop_per_second, trials)
    yield Finding("ok", "optimizer steps: " + ", ".join(f"{stage.steps:,} in {stage.name}" for stage in planned), True)
    if found is None:
        unit = "GPU" if any(uses) else "CPU"
        yield Finding("note", f"no times: machine.teraflop_per_second, what one {unit} sustains, is not stated", True)
        return
    evaluation = 0.0 if trials else evaluation_seconds(config, base, flop_per_second)
    parts = ", ".join([*map(str, planned), *([] if trials else [f"evaluation {in_words(evaluation)}"])])
    yield Finding("ok", f"about {in_words(total(planned, evaluation))} at {source}: {parts}", True)


def _ratio(config: Config, base: Path | None, pictures: int) -> Finding:
    ideal, targets, training = ideal_ratio(config, base, pictures), config.targets, config.preference.optimization
    on_gpu = bool(targets.gpus_per_actor and training.gpus_per_worker)
    unit, actors, workers = (
        ("GPU", targets.gpus_per_actor, training.gpus_per_worker)
        if on_gpu
        else ("CPU", targets.cpus_per_actor, training.cpus_per_worker)
    )
    own = targets.max_actors * actors / (training.workers * workers)
    waits = targets.overlap and own < ideal
    return Finding(
        "note" if waits else "ok",
        f"targets of stage 2 keep up with its training when {ideal:.1f} {unit}s compute them for each that trains; "
        f"this configuration has {own:.1f}{', so training waits for them' if waits else ''}",
        True,
    )

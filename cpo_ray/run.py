"""A run: its settings, tree, data, folder and tracker; opening one, and claiming its folder."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cpo_ray.config import Config, ConfigError, changed, dump
from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.core.files import read_log, write_text
from cpo_ray.core.locks import locked
from cpo_ray.data.buckets import Bucket
from cpo_ray.data.pairs import annotated_pairs
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.domain import open_domain
from cpo_ray.hierarchy import Hierarchy, load_hierarchy
from cpo_ray.objectives import objective_of
from cpo_ray.preflight.checks import check, told_of_pictures
from cpo_ray.preflight.trials import Trials
from cpo_ray.recipes import Training, Usable, alignment, usable_pictures
from cpo_ray.requirements import RequirementMissed
from cpo_ray.session import connect
from cpo_ray.tracking import RunDescription, RunTracker, git_commit, open_experiment, resolve_uri, start_run
from cpo_ray.training.artifacts.checkpoint import checkpoints
from cpo_ray.training.artifacts.records import METRICS, RESULT, SETTINGS


@dataclass(frozen=True)
class Run:
    """What all stages share: the settings, the tree of attributes, the data, the folder and the tracker."""

    config: Config
    tree: Hierarchy
    dataset: AnnotatedDataset
    folder: Path
    tracker: RunTracker
    resume: bool

    @property
    def pictures(self) -> Usable:
        """The pictures of the data set, without those that are too small."""
        return usable_pictures(self.config, self.dataset)

    @property
    def training_pictures(self) -> dict[str, Bucket]:
        """The pictures that stage 1 and stage 2 learn from."""
        return self.pictures.training(self.config.data.proportion)

    @property
    def adapter(self) -> Path:
        """The expert's adapter: the configured one, or the one that stage 1 of this run leaves."""
        return self.config.expert.adapter or self.folder / "expert" / "adapter"

    @property
    def provenance(self) -> dict[str, str]:
        """What the run's reports say about the origin of their numbers."""
        return {
            "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "commit": git_commit(),
            "data": self.dataset.fingerprint,
            "hierarchy": f"{self.tree.name} {self.tree.version}, {self.tree.content_hash}",
            "packages": ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "ray", "deepspeed", "peft")),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
        }

    def alignment(self, objective: ObjectiveSettings) -> Training:
        """Return stage 2 with an objective, on the training pictures that it takes."""
        pictures, most = self.training_pictures, objective.most_negatives
        if most is not None:
            few = (name for name in pictures if len(self.dataset.labels(name).negative_ids) <= most)
            pictures = {name: pictures[name] for name in few}
        compared = objective_of(objective).pictures > 1
        losers = annotated_pairs(pictures, self.dataset.labels, self.config.run.seed) if compared else None
        return alignment(self.config, objective, pictures, self.adapter, losers)

    def told_of(self, training: Training) -> str:
        """Return one line on a training: the objective with its settings, how long it takes, the pictures and the base."""
        settings = training.objective.model_dump(exclude={"name"}, exclude_none=True)
        told = "".join(
            f", {key} {value:g}" if isinstance(value, float) else f", {key} {value}" for key, value in settings.items()
        )
        plan = training.plan
        return (
            f"{training.name}{told}: {plan.steps} steps of {plan.global_batch} on {len(plan.sample_ids)} pictures of "
            f"{self.config.data.folder} ({self.dataset.fingerprint}), base {self.config.model.base}"
        )

    def track(self, name: str, folder: Path, resume: bool, note: str = "") -> RunTracker:
        """Begin an MLflow run for a training in `folder`, below the whole run's; with `resume` continue the one that it had.

        A new run is described by `note`.
        """
        description = _description(self.config, self.dataset, self.tree, note)
        return start_run(self.tracker.experiment, name, folder, description, self.tracker.run_id, resume)

    def whereabouts(self) -> str:
        """Return where the run is and how to go on, as the end of a sentence: the last training that was begun, and its step."""
        begun = [name for name in ("expert", *self.config.preference.trainings) if (self.folder / name / SETTINGS).exists()]
        if not begun:
            return "before its first training; pass --resume to go on"
        folder = self.folder / begun[-1]
        if (folder / RESULT).exists():
            return f"after the training of {begun[-1]}; pass --resume to go on from there"
        steps = len(read_log(folder / METRICS, skip_damaged=True))
        kept = [step for storage in folder.glob(f"{self.config.run.name}-*") for step, _ in checkpoints(storage)]
        last = f"the checkpoint of step {max(kept)}" if kept else "its first step, since there is no checkpoint yet"
        return f"in the training of {begun[-1]} after {steps} steps; pass --resume to go on from {last}"

    def say(self, sentence: str) -> None:
        print(f"[{self.config.run.name}] {sentence}", flush=True)


class InterruptedRun(RuntimeError):
    """A run was stopped from outside. The message says where it was, and how to go on."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


@contextmanager
def opened(config: Config, resume: bool = False, trials: Trials | None = None) -> Iterator[Run]:
    """Hold a run's folder, open the run as `open_run` does, and close what is left open in MLflow if the block is cut short.

    Raises ConfigError if another process works on this run, and InterruptedRun for SIGTERM and Ctrl-C.
    """
    with ExitStack() as stack:
        stack.enter_context(_lease(config.folder.absolute()))
        run = open_run(config, resume, trials)
        try:
            yield run
        except (KeyboardInterrupt, SystemExit) as stop:
            run.tracker.abandon("KILLED")
            terminated = isinstance(stop, SystemExit) and stop.code == signal.SIGTERM  # Ray's handler exits with its number
            how, code = ("SIGTERM", 143) if terminated else ("Ctrl-C", 130)
            raise InterruptedRun(f"{config.run.name} was stopped by {how} {run.whereabouts()}", code) from None
        except RequirementMissed:
            raise
        except Exception:
            run.tracker.abandon("FAILED")
            run.say(f"the run failed {run.whereabouts()}")
            raise


@contextmanager
def _lease(folder: Path) -> Iterator[None]:
    """Have a run's folder alone. A process that dies, however it dies, lets go of it."""
    path = folder.parent / ".locks" / folder.name
    with ExitStack() as stack:
        try:
            file = stack.enter_context(locked(path, wait=False))
        except BlockingIOError:
            raise ConfigError(
                f"{folder} is worked on by {path.read_text(encoding='utf-8') or 'another process'}; wait for it, or stop it and "
                "start again with --resume, or give this run another run.name"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC".encode())
        file.flush()
        yield


def open_run(config: Config, resume: bool = False, trials: Trials | None = None) -> Run:
    """Check everything, claim the run's folder, and connect to Ray and MLflow; with `trials` for a sweep.

    Raises ConfigError if the folder holds another run. A resumed run needs the configuration it was started with, except for
    settings of how it is computed.
    """
    folder = config.folder.absolute()
    record = folder / "config.toml"
    if record.exists() and not resume:
        raise ConfigError(f"{folder} already holds a run; pass --resume to continue it, or another run.name=NAME")
    if record.exists() and (differing := changed(record, config)):
        raise ConfigError(
            f"{record} was started with other settings than {'; '.join(differing)}; give this run another run.name "
            "(workers, their resources, micro_batch and zero_stage may change, what is trained may not)"
        )
    connect()
    findings = check(config, trials)
    if missing := [finding.sentence for finding in findings if finding.verdict == "missing"]:
        raise ConfigError("\n".join(missing))
    tree = load_hierarchy(config.data.hierarchy)
    dataset = open_data(config, tree)
    if not record.exists():
        write_text(record, dump(config))
    uri = resolve_uri(config.tracking, config.run.output)
    experiment = open_experiment(uri, config.tracking.experiment, config.run.output.absolute() / "mlartifacts")
    trained = f"a sweep of {trials.count} trials" if trials else f"the expert, then {', '.join(config.preference.trainings)}"
    note = f"{trained}, on {len(dataset.ids)} pictures of {config.data.folder}, base {config.model.base}"
    tracker = start_run(experiment, config.run.name, folder, _description(config, dataset, tree, note), resume=resume)
    run = Run(config, tree, dataset, folder, tracker, resume)
    for finding in findings:
        if finding.planned:
            run.say(finding.sentence)
    sizes = told_of_pictures(config, dataset)
    run.say(f"WARNING: {sizes.sentence}" if sizes.left_out else sizes.sentence)
    return run


def open_data(config: Config, tree: Hierarchy) -> AnnotatedDataset:
    """Return the annotated shards; a domain draws its own if configured."""
    if config.domain.pictures:
        domain = open_domain(config.domain, tree)
        return domain.make_data(config.data.folder, config.domain.pictures, config.run.seed)
    dataset = AnnotatedDataset.open(config.data.folder)
    dataset.check_hierarchy(tree)
    return dataset


def _description(config: Config, dataset: AnnotatedDataset, tree: Hierarchy, note: str) -> RunDescription:
    """Return what MLflow shows about a run and each of its trainings."""
    tags = {"data": dataset.fingerprint, "hierarchy": tree.content_hash, "commit": git_commit()}
    return RunDescription(dump(config), config.model_dump(mode="json"), tags, note)

"""The method, stage by stage, as the paper's algorithm reads. Each public function is one job.

    annotated pictures ─► stage 1: expert θ1 ─► targets: frozen outputs of θ1 and the reference ─► stage 2: CPO ─► evaluation

Every stage leaves its result in the run's folder and is skipped when it is there: to resume is to call the same function again.
"""

from __future__ import annotations

from pathlib import Path

from cpo_ray import stages
from cpo_ray.config import Config
from cpo_ray.data.importer import ImportReport, import_folder
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.run import open_run
from cpo_ray.targets.producer import ProductionReport
from cpo_ray.training.health import TrainingHealthError


def train_cpo(config: Config, resume: bool = False) -> None:
    """The whole method: expert, targets beside training, CPO, the baselines asked for, evaluation and report."""
    run = open_run(config, resume)
    stages.train_expert(run)
    stages.check_obedience(run)
    objective, *baselines = config.preference.trainings
    stages.align(run, objective)
    for baseline in baselines:
        try:
            stages.align(run, baseline)
        except TrainingHealthError as error:  # what a baseline is there to show, and no reason to lose the rest
            run.say(f"{baseline}: {error}; it is left out of the comparison")
    stages.evaluate(run)


def train_sft(config: Config, resume: bool = False) -> None:
    """Stage 1 alone: the expert θ1, and whether it obeys its attributes (Table S6)."""
    run = open_run(config, resume)
    stages.train_expert(run)
    stages.check_obedience(run)
    run.tracker.finish()


def precompute_targets(config: Config) -> ProductionReport:
    """Compute every target shard that stage 2 of this configuration will read."""
    return stages.precompute_targets(open_run(config, resume=True))


def evaluate(config: Config) -> None:
    """Generate, measure and report whatever the run has trained."""
    stages.evaluate(open_run(config, resume=True))


def import_data(config: Config, images: Path) -> ImportReport:
    """A folder of pictures with metadata.jsonl → annotated shards in `data.folder`."""
    report = import_folder(images, config.data.folder, load_hierarchy(config.data.hierarchy))
    print(report.summary())
    return report

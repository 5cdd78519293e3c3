"""The method, stage by stage, in the order of the paper's algorithm. Each public function is one job.

    annotated pictures ─► stage 1: expert θ1 ─► targets: frozen outputs of θ1 and the reference ─► stage 2: CPO ─► evaluation

Every stage leaves its result in the run's folder and is skipped if it exists, so calling the same function again resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpo_ray import stages
from cpo_ray.config import Config
from cpo_ray.config.section import at_home
from cpo_ray.data.importer import ImportReport, import_folder
from cpo_ray.evaluation.scorers.base import open_scorers
from cpo_ray.evaluation.tables import scorer_list
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.recipes import NoPicturesError
from cpo_ray.requirements import read_requirements
from cpo_ray.run import opened
from cpo_ray.targets.producer import ProductionReport
from cpo_ray.training.health import TrainingHealthError


def train_cpo(config: Config, resume: bool = False) -> None:
    """Run the whole method: expert, targets beside training, CPO, the configured baselines, evaluation and report."""
    with opened(config, resume) as run:
        stages.train_expert(run)
        stages.check_obedience(run)
        (_, objective), *baselines = config.preference.trainings.items()
        stages.train_on_targets(run, run.alignment(objective))
        for name, baseline in baselines:
            try:
                stages.train_on_targets(run, run.alignment(baseline))
            except (TrainingHealthError, NoPicturesError) as error:  # a baseline may diverge to make a point; the rest goes on
                run.say(f"{name}: {error}; it is left out of the comparison")
        stages.evaluate(run)


def train_sft(config: Config, resume: bool = False) -> None:
    """Run stage 1 alone: train the expert θ1 and test whether it obeys its attributes (Table S6)."""
    with opened(config, resume) as run:
        stages.train_expert(run)
        stages.check_obedience(run)
        run.tracker.finish()


def precompute_targets(config: Config) -> ProductionReport:
    """Compute every target shard that stage 2 of this configuration reads."""
    with opened(config, resume=True) as run:
        report = stages.precompute_targets(run)
        run.tracker.finish()
    return report


def evaluate(config: Config, scorers: str | None = None, require: Sequence[str] = ()) -> None:
    """Draw, measure and report everything that the run has trained; with `scorers`, say only what there is to score by.

    Raises RequirementMissed at the end where a figure of the run's own objective misses what is required, such as "negatives<=1".
    """
    if scorers is not None:
        print(scorer_list(config))
        return
    required = read_requirements(require, open_scorers(config))  # wrong ones are told before anything is drawn
    with opened(config, resume=True) as run:
        stages.evaluate(run, required)


def import_data(config: Config, images: Path) -> ImportReport:
    """Import a folder of pictures into annotated shards in `data.folder`."""
    report = import_folder(at_home(images), config.data.folder, load_hierarchy(config.data.hierarchy))
    print(report.summary())
    return report

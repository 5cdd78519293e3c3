"""The configuration of a run: one strict section per component."""

from __future__ import annotations

from pathlib import Path

from cpo_ray.config.data import Data
from cpo_ray.config.evaluation import Evaluation
from cpo_ray.config.expert import ExpertSettings
from cpo_ray.config.model import Model
from cpo_ray.config.preference import Preference
from cpo_ray.config.run import Machine, RunSettings, Tracking
from cpo_ray.config.section import Section
from cpo_ray.config.sweep import Sweep
from cpo_ray.config.targets import Targets


class Config(Section):
    """Everything a run needs, complete in one file."""

    run: RunSettings
    model: Model
    data: Data
    expert: ExpertSettings
    targets: Targets
    preference: Preference
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    machine: Machine = Machine()
    sweep: Sweep | None = None
    """What `tune/search_cpo.py` tries out; every other job leaves it alone."""

    @property
    def training_seed(self) -> int:
        """Decides the order of stage 2's training and its first weights."""
        return self.run.seed if self.preference.seed is None else self.preference.seed

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.run.output / self.run.name

"""The configuration of a run: one strict section per component."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cpo_ray.config.data import Data
from cpo_ray.config.domain import ChosenDomain
from cpo_ray.config.evaluation import Evaluation
from cpo_ray.config.expert import ExpertSettings
from cpo_ray.config.model import Model
from cpo_ray.config.preference import Preference
from cpo_ray.config.registry import DOMAINS
from cpo_ray.config.run import Machine, RunSettings, Tracking
from cpo_ray.config.section import Section
from cpo_ray.config.sweep import Sweep
from cpo_ray.config.sweep.searched import checked
from cpo_ray.config.targets import Targets


class Config(Section):
    """Everything a run needs, complete in one file."""

    run: RunSettings
    domain: ChosenDomain = Field(default="none", validate_default=True)
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

    @field_validator("model", mode="before")
    @classmethod
    def _base_of_the_domain(cls, model: Any, info: ValidationInfo) -> Any:
        """A domain may have a base model of its own, which is meant where none is named."""
        domain = info.data.get("domain")  # it is not there if it is wrong itself
        base = None if domain is None else getattr(DOMAINS.load(domain.use), "base", None)
        return {"base": base} | model if base and isinstance(model, dict) else model

    @model_validator(mode="after")
    def _what_is_searched_is_a_setting(self) -> Config:
        """Every value that a sweep may try is one that its setting can have, and gets the setting's type."""
        if self.sweep is None:
            return self
        tree = self.model_dump(mode="json", exclude_none=True, exclude={"sweep"})
        space = checked(type(self), tree, self.sweep.space)
        return self.model_copy(update={"sweep": self.sweep.model_copy(update={"space": space})})

    @property
    def training_seed(self) -> int:
        """Decides the order of stage 2's training and its first weights."""
        return self.run.seed if self.preference.seed is None else self.preference.seed

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.run.output / self.run.name

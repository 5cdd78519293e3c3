"""Training losses. A new one is one file here and one line in `cpo_ray.config.registry`, or one file anywhere else."""

from __future__ import annotations

from typing import Any

from cpo_ray.config import ConfigError
from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.config.registry import OBJECTIVES
from cpo_ray.objectives.base import FrozenName, Objective, View, ViewOutputs
from cpo_ray.objectives.expert_targets import ExpertDifferences, direction_cosine


def objective_of(settings: ObjectiveSettings) -> Objective[Any]:
    """Return the objective of these settings. Raises ConfigError if their name leads to none that accepts them."""
    found = OBJECTIVES.load(settings.name)
    if not isinstance(found, Objective) or not isinstance(settings, found.settings):
        raise ConfigError(f"{settings.name!r} is not an objective that takes {type(settings).__name__}; it is {found!r}")
    return found


__all__ = [
    "ExpertDifferences",
    "FrozenName",
    "Objective",
    "View",
    "ViewOutputs",
    "direction_cosine",
    "objective_of",
]

"""Training losses by name. A new one is one file here and one entry below."""

from __future__ import annotations

from cpo_ray.objectives.base import FrozenOutputs, Objective, ObjectiveParameters
from cpo_ray.objectives.cpo import CPO
from cpo_ray.objectives.cpo_stabilised import CPO_STABILISED
from cpo_ray.objectives.expert_targets import ExpertDifferences, direction_cosine
from cpo_ray.objectives.sft import SFT

OBJECTIVES = {objective.name: objective for objective in (SFT, CPO, CPO_STABILISED)}


def get_objective(name: str) -> Objective:
    """The objective of that name. Raises ValueError, listing the valid names, if there is none."""
    if name not in OBJECTIVES:
        raise ValueError(f"there is no objective {name!r}; choose one of {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]


__all__ = [
    "OBJECTIVES",
    "ExpertDifferences",
    "FrozenOutputs",
    "Objective",
    "ObjectiveParameters",
    "direction_cosine",
    "get_objective",
]

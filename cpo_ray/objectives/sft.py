"""Supervised fine-tuning: the ordinary denoising loss."""

from __future__ import annotations

from pydantic import Field

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs, mean_per_sample


class SupervisedSettings(ObjectiveSettings):
    """Supervised training learns from good examples only."""

    most_negatives: int | None = Field(default=1, ge=0)
    """Train on pictures with at most this many negative attributes; a large number takes all."""


def sft_loss(views: tuple[ViewOutputs, ...], settings: ObjectiveSettings) -> LossAndMetrics:
    """Return the mean squared error of the prediction against the denoising target, per sample (CPO, section 5.1)."""
    (view,) = views
    return mean_per_sample((view.prediction - view.frozen("target")).square()), {}


SFT = Objective(name="sft", settings=SupervisedSettings, needs=frozenset({"target"}), function=sft_loss)
#: The same on all pictures, good and bad.
SFT_ALL = Objective(name="sft_all", settings=ObjectiveSettings, needs=frozenset({"target"}), function=sft_loss)

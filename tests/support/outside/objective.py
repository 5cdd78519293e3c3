"""An objective of one's own: it pulls the model to the winning output and knows no losing one."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs, mean_per_sample


class PullSettings(ObjectiveSettings):
    """What no objective of the package is told."""

    omega_win: float = Field(default=2.0, ge=0)
    """Where z_w lies."""
    strength: PositiveFloat = 1.0
    """Factor of the loss."""


def pull(views: tuple[ViewOutputs, ...], settings: PullSettings) -> LossAndMetrics:
    """strength · |z_w - ε_θ|² per sample, as a mean, and how far the model is from the reference."""
    (view,) = views
    away = mean_per_sample((view.prediction - view.frozen("reference")).detach().square())
    loss = settings.strength * mean_per_sample((view.prediction - view.frozen("winning")).square())
    return loss, {"distance_to_reference": away}


PULL = Objective("pull", PullSettings, frozenset({"reference", "winning"}), pull)

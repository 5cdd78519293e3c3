"""An objective that predicts every sample twice, to see that a trainer predicts all views in one forward."""

from __future__ import annotations

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import LossAndMetrics, Objective, View, ViewOutputs, mean_per_sample


def mean_of_both(views: tuple[ViewOutputs, ...], settings: ObjectiveSettings) -> LossAndMetrics:
    """The supervised loss, as the mean over two views, and how far their predictions are from each other."""
    first, second = views
    losses = [mean_per_sample((view.prediction - view.frozen("target")).square()) for view in views]
    return (losses[0] + losses[1]) / 2, {"apart": mean_per_sample((first.prediction - second.prediction).square())}


TWICE = Objective("twice", ObjectiveSettings, frozenset({"target"}), mean_of_both, views=(View(0, 0), View(0, 0)))

"""Linear-DPO (arXiv 2605.21123) on CPO's two sides: the gradient's weight is linear in the balance and never vanishes."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs
from cpo_ray.objectives.preference import NEEDS, PreferenceSettings, error_change, guarded, preference_metrics


class LinearSettings(PreferenceSettings):
    """The settings of a two-sided loss, and how small the weight may become."""

    least_weight: float = Field(default=0.1, gt=0, le=0.5)
    """η: the weight of a sample stays between η and 1 - η, so that none stops teaching."""


def linear_weight(balance: Tensor, settings: LinearSettings) -> Tensor:
    """Return clip(0.2 β balance + 0.5, η, 1 - η) per sample (B,), without gradient."""
    weight = (0.2 * settings.beta * balance.detach() + 0.5).clamp(settings.least_weight, 1 - settings.least_weight)
    return weight


def linear_loss(views: tuple[ViewOutputs, ...], settings: LinearSettings) -> LossAndMetrics:
    """Return κ · weight · (win - lose) per sample, κ = β / 2; 0 at the reference.

    The gradient is that of plain CPO (Eq. 12) with the clipped weight in the place of its sigmoid, which is logged as `open`.
    """
    (view,) = views
    reference, winning, losing = view.frozen("reference"), view.frozen("winning"), view.frozen("losing")
    displacement = view.prediction - reference
    win = error_change(displacement, winning - reference)
    lose = error_change(displacement, losing - reference)
    metrics, weight = preference_metrics(win, lose, displacement), linear_weight(win - lose, settings)
    lose = guarded(lose, view.prediction - winning, view.prediction - losing, settings.safeguard)
    return settings.beta / 2 * weight * (win - lose), metrics | {"open": weight}


LINEAR_DPO = Objective(name="linear_dpo", settings=LinearSettings, needs=NEEDS, function=linear_loss)

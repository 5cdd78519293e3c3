"""Stabilised CPO (Eq. 13 and 14): the push away from z_l is exactly as strong as the pull towards z_w."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor
from torch.nn import functional

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs, mean_per_sample
from cpo_ray.objectives.preference import (
    NEEDS,
    PreferenceSettings,
    error_change,
    guarded,
    logistic_loss,
    preference_metrics,
)

#: Added to |z_w - z_l|², so that a sample whose two sides are equal does not get an endless β.
_LEAST_CONTRAST = 1e-4


class StabilisedSettings(PreferenceSettings):
    """Stabilised CPO has one β for all samples, as in the paper, or one that goes by how far a sample's two sides are apart."""

    margin: Literal["fixed", "normalised"] = "fixed"
    """"fixed": every sample has β. "normalised": every sample has its own, normalised_beta / (|z_w - z_l|² + 10⁻⁴)."""
    normalised_beta: PositiveFloat = 0.3
    """β of a sample times the mean square of its contrast z_w - z_l, with a normalised margin."""

    @property
    def _idle(self) -> str:
        """The setting that has no effect with this margin."""
        return "beta" if self.margin == "normalised" else "normalised_beta"

    @model_validator(mode="after")
    def _nothing_is_idle(self) -> Self:
        value, default = getattr(self, self._idle), type(self).model_fields[self._idle].default
        if value != default:
            raise ValueError(
                f"{self._idle} = {value:g} has no effect with margin = {self.margin!r}; leave it out, or choose the other margin"
            )
        return self

    def completed(self, main: ObjectiveSettings) -> ObjectiveSettings:
        """Return these settings, with missing values from `main`, but none that a margin given here leaves without effect."""
        if "margin" in self.model_fields_set and self._idle in type(main).model_fields:
            main = main.model_copy(update={self._idle: type(self).model_fields[self._idle].default})
        return super().completed(main)

    def betas(self, winning: Tensor, losing: Tensor) -> float | Tensor:
        """Return β: one number, or (B,) from z_w and z_l (B, ...)."""
        if self.margin == "fixed":
            return self.beta
        return self.normalised_beta / (mean_per_sample((winning - losing).square()) + _LEAST_CONTRAST)


@torch.no_grad()
def stabilised_losing(prediction: Tensor, winning: Tensor, losing: Tensor) -> Tensor:
    """Return z_l' (B, ...) of CPO, Eq. 13: on the far side of ε_θ from z_l, as far from ε_θ as z_w is, per sample.

    If ε_θ = z_l there is no direction, and z_l' is ε_θ itself, since the original term has no gradient there.
    """
    # `normalize` divides by at least 1e-12, which is the guard: a zero vector stays zero.
    direction = functional.normalize((prediction - losing).flatten(1), dim=1)
    length: Tensor = torch.linalg.vector_norm((prediction - winning).flatten(1), dim=1, keepdim=True)
    return prediction + (direction * length).view_as(prediction)


def cpo_stabilised_loss(views: tuple[ViewOutputs, ...], settings: StabilisedSettings) -> LossAndMetrics:
    """Return -log sigmoid(-κ (win + |z_l' - ε_θ|² - |z_l' - ε_ref|²)) per sample (CPO, Eq. 14).

    With a = ε_θ - z_w and b = ε_θ - z_l the gradient has the direction 2|a| (a/|a| - b/|b|). It vanishes at z_w and on the ray
    from z_l beyond it. The value of the loss also falls as z_l' moves, so read progress off the metrics: `lose` is the original
    losing part, as in the paper's Fig. 5, and `lose_stabilised` the term that is trained.

    With d = ε_θ - ε_ref the balance is -2|d|² + 2|a| <a/|a| - b/|b|, d>, and its second part is small: the logistic closes as the
    model leaves the reference, in whatever direction. With one β for all, samples with a large contrast z_w - z_l close almost at
    once. A normalised margin keeps them open. For κ and the other metrics see `cpo_ray.objectives.preference`.
    """
    (view,) = views
    reference, winning, losing = view.frozen("reference"), view.frozen("winning"), view.frozen("losing")
    displacement, moved = view.prediction - reference, stabilised_losing(view.prediction, winning, losing)
    win = error_change(displacement, winning - reference)
    lose_stabilised = error_change(displacement, moved - reference)
    lose = error_change(displacement.detach(), losing - reference)
    metrics = preference_metrics(win, lose, displacement) | {"lose_stabilised": lose_stabilised}
    pushed = guarded(lose_stabilised, view.prediction - winning, moved - view.prediction, settings.safeguard)
    loss, share = logistic_loss(win + pushed, settings.betas(winning, losing))
    return loss, metrics | share


CPO_STABILISED = Objective(name="cpo_s", settings=StabilisedSettings, needs=NEEDS, function=cpo_stabilised_loss)

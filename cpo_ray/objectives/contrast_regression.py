"""Contrast regression, ours: the reference's output plus γ times what the expert changes is learned as it stands."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs, mean_per_sample
from cpo_ray.objectives.preference import NEEDS, error_change, preference_metrics


class ContrastSettings(ObjectiveSettings):
    """How far the model shall go along the contrast z_w - z_l."""

    omega_win: float = Field(default=1.0, ge=0)
    """ω_w: how far z_w lies beyond θ1(A_neg) towards θ1(y, A_pos) (CPO, Eq. 10)."""
    omega_lose: float = Field(default=1.0, ge=0)
    """ω_l: how far z_l lies beyond θ1(∅) towards θ1(y, A_pos, A_neg) (CPO, Eq. 11)."""
    gamma: PositiveFloat = 8.0
    """γ: the displacement from the reference that is asked for, in units of the contrast."""
    beta: PositiveFloat = 1000.0
    """Factor of the loss. Adam does not see it, but gradient_clip does: with a large one every step is clipped."""


def contrast_loss(views: tuple[ViewOutputs, ...], settings: ContrastSettings) -> LossAndMetrics:
    """Return β/2 |ε_θ - ε_ref - γ (z_w - z_l)|² per sample, as a mean.

    Up to a constant this is β/2 [γ (win - lose) + |ε_θ - ε_ref|²]: the balance of plain CPO (Eq. 12) without its logistic, held
    by the distance to the reference. The gradient is zero where ε_θ = ε_ref + γ E[z_w - z_l | x_t, y] and nowhere else. The
    metric `residual` is the share of the displacement's mean square that is not reached: 1 at the reference.
    """
    (view,) = views
    reference, winning, losing = view.frozen("reference"), view.frozen("winning"), view.frozen("losing")
    displacement, asked = view.prediction - reference, settings.gamma * (winning - losing)
    error = mean_per_sample((displacement - asked).square())
    kept = displacement.detach()
    metrics = preference_metrics(error_change(kept, winning - reference), error_change(kept, losing - reference), kept)
    residual = error / mean_per_sample(asked.square()).clamp_min(1e-12)
    return settings.beta / 2 * error, metrics | {"residual": residual}


CONTRAST_REGRESSION = Objective(name="cpo_d", settings=ContrastSettings, needs=NEEDS, function=contrast_loss)

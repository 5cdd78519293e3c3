"""The winning side of CPO alone, which shows what the losing side adds."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs, mean_per_sample
from cpo_ray.objectives.preference import error_change, logistic_loss


class WinOnlySettings(ObjectiveSettings):
    """Where the winning side lies, and how strongly it acts."""

    omega_win: float = Field(default=2.0, ge=0)
    """ω_w: how far z_w lies beyond θ1(A_neg) towards θ1(y, A_pos) (CPO, Eq. 10)."""
    beta: PositiveFloat = 5000.0
    """β of the public Diffusion-DPO code: κ = β / 2 on the mean over C, H, W."""


def win_only_loss(views: tuple[ViewOutputs, ...], settings: WinOnlySettings) -> LossAndMetrics:
    """Return -log sigmoid(-κ win) per sample: Eq. 12 of CPO without its losing part. Its one attractor is z_w."""
    (view,) = views
    reference = view.frozen("reference")
    displacement = view.prediction - reference
    win = error_change(displacement, view.frozen("winning") - reference)
    loss, share = logistic_loss(win, settings.beta)
    return loss, {"win": win, "distance_to_reference": mean_per_sample(displacement.square())} | share


WIN_ONLY = Objective(name="win_only", settings=WinOnlySettings, needs=frozenset({"reference", "winning"}), function=win_only_loss)

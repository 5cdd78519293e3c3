"""DiffusionNFT, offline (arXiv 2509.16117), with CPO's two sides in the place of good and bad samples."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs, mean_per_sample
from cpo_ray.objectives.preference import NEEDS, error_change, preference_metrics


class NegativeAwareSettings(ObjectiveSettings):
    """Where the two sides lie, and how the model is mixed with the reference."""

    omega_win: float = Field(default=2.0, ge=0)
    """ω_w: how far z_w lies beyond θ1(A_neg) towards θ1(y, A_pos) (CPO, Eq. 10)."""
    omega_lose: float = Field(default=2.0, ge=0)
    """ω_l: how far z_l lies beyond θ1(∅) towards θ1(y, A_pos, A_neg) (CPO, Eq. 11)."""
    mixing: PositiveFloat = 1.0
    """β of DiffusionNFT: how far the two implicit models lie from the reference, in units of the model's displacement. A smaller
    one lets the model go further."""


def nft_loss(views: tuple[ViewOutputs, ...], settings: NegativeAwareSettings) -> LossAndMetrics:
    """Return |v⁺ - z_w|² + |v⁻ - z_l|² per sample, as means, with v± = ε_ref ± mixing (ε_θ - ε_ref).

    With d = ε_θ - ε_ref and both sides taken from ε_ref its minimum is d = (z_w - z_l) / (2 mixing): half the contrast, `mixing`
    times magnified.
    """
    (view,) = views
    reference, winning, losing = view.frozen("reference"), view.frozen("winning"), view.frozen("losing")
    displacement = view.prediction - reference
    mixed, kept = settings.mixing * displacement, displacement.detach()
    loss = mean_per_sample((reference + mixed - winning).square()) + mean_per_sample((reference - mixed - losing).square())
    return loss, preference_metrics(error_change(kept, winning - reference), error_change(kept, losing - reference), kept)


NFT = Objective(name="nft", settings=NegativeAwareSettings, needs=NEEDS, function=nft_loss)

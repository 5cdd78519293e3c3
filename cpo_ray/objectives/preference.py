"""What two-sided losses share: settings, parts relative to the reference, and a logistic loss on their balance.

Convention. Squared norms are *means* over all dimensions but the batch, and β is that of the public Diffusion-DPO code. The
factor κ of the logistic loss is therefore κ_mean = β / 2 (it stands for β T ω(λ_t) in CPO, Eq. 12). With sums over D elements the
same loss has κ_sum = β / (2 D). The mean does not change with the resolution.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import FrozenName, LossAndMetrics, mean_per_sample

#: The frozen outputs that a loss with a winning and a losing side reads.
NEEDS: frozenset[FrozenName] = frozenset({"reference", "winning", "losing"})


class PreferenceSettings(ObjectiveSettings):
    """Where the two sides lie, and how strongly they act."""

    omega_win: float = Field(default=2.0, ge=0)
    """ω_w: how far z_w lies beyond θ1(A_neg) towards θ1(y, A_pos) (CPO, Eq. 10)."""
    omega_lose: float = Field(default=2.0, ge=0)
    """ω_l: how far z_l lies beyond θ1(∅) towards θ1(y, A_pos, A_neg) (CPO, Eq. 11)."""
    beta: PositiveFloat = 5000.0
    """β of the public Diffusion-DPO code: κ = β / 2 on the mean over C, H, W."""
    safeguard: float | None = Field(default=None, ge=0, le=1)
    """μ of Diffusion-SDPO: the push away from z_l is weakened wherever it would leave less than the share μ of the pull towards
    z_w. Without it the push is never weakened."""


def error_change(displacement: Tensor, offset: Tensor) -> Tensor:
    """Return |z - ε_θ|² - |z - ε_ref|² per sample (B,), as means; negative if ε_θ is nearer to z than ε_ref is.

    `displacement` is ε_θ - ε_ref and `offset` is z - ε_ref, both (B, ...).
    """
    # The difference of squares is multiplied out, since subtracting two nearly equal errors would lose digits, and κ, in the
    # thousands, would amplify that.
    return mean_per_sample(displacement * (displacement - 2 * offset))


def logistic_loss(balance: Tensor, beta: float | Tensor) -> LossAndMetrics:
    """Return -log sigmoid(-κ balance) per sample, κ = β / 2 (CPO, Eq. 12 and 14); ln 2 if the balance is 0.

    `balance` is (B,), and `beta` one number or (B,). The metric `open` (B,) is sigmoid(κ balance), the factor of the gradient. It
    is 1/2 at the start, and near 0 where a sample no longer teaches anything.
    """
    scaled = beta / 2 * balance
    return functional.softplus(scaled), {"open": torch.sigmoid(scaled.detach())}


def guarded(lose: Tensor, winner: Tensor, loser: Tensor, safeguard: float | None) -> Tensor:
    """Return `lose` (B,) with the same value, and its gradient weakened per sample as in Diffusion-SDPO (arXiv 2511.03317).

    `winner` is half the gradient of the winning part and `loser` minus half that of the losing part, both (B, ...) up to the same
    factor. The gradient is scaled by λ = clamp((1 - μ) |winner|² / <loser, winner>, 0, 1), with μ the `safeguard`. A small step
    along both then lowers the winner's error by at least the share μ of what the winning part alone would.
    """
    if safeguard is None:
        return lose
    winner, loser = winner.detach(), loser.detach()
    against = mean_per_sample(loser * winner)
    allowed = (1 - safeguard) * mean_per_sample(winner.square())
    # Where the losing part does not act against the winning one, nothing is to be weakened.
    scale = torch.where(against > allowed, allowed / against, torch.ones_like(against))
    return scale * lose + (1 - scale) * lose.detach()


@torch.no_grad()
def preference_metrics(win: Tensor, lose: Tensor, displacement: Tensor) -> dict[str, Tensor]:
    """Return what every two-sided objective logs; all are (B,).

    win, lose: the parts |z - ε_θ|² - |z - ε_ref|² for z_w and z_l. margin: lose - win, above 0 where the
    model has moved to the winning side. implicit_accuracy: 1 where the margin is above 0, else 0.
    distance_to_reference: mean square of ε_θ - ε_ref.
    """
    return {
        "win": win,
        "lose": lose,
        "margin": lose - win,
        "implicit_accuracy": (win < lose).float(),
        "distance_to_reference": mean_per_sample(displacement.square()),
    }

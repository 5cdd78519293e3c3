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
from cpo_ray.objectives.base import FrozenName, mean_per_sample

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


def error_change(displacement: Tensor, offset: Tensor) -> Tensor:
    """Return |z - ε_θ|² - |z - ε_ref|² per sample (B,), as means; negative if ε_θ is nearer to z than ε_ref is.

    `displacement` is ε_θ - ε_ref and `offset` is z - ε_ref, both (B, ...).
    """
    # The difference of squares is multiplied out, since subtracting two nearly equal errors would lose digits, and κ, in the
    # thousands, would amplify that.
    return mean_per_sample(displacement * (displacement - 2 * offset))


def logistic_loss(balance: Tensor, settings: PreferenceSettings) -> Tensor:
    """Return -log sigmoid(-κ balance) per sample, κ = β / 2 (CPO, Eq. 12 and 14); ln 2 if the balance is 0."""
    return functional.softplus(settings.beta / 2 * balance)


@torch.no_grad()
def preference_metrics(win: Tensor, lose: Tensor, displacement: Tensor) -> dict[str, Tensor]:
    """What every two-sided objective logs; all are (B,).

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

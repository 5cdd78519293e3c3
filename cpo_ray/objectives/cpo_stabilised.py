"""Stabilised CPO (Eq. 13 and 14): the push away from z_l is exactly as strong as the pull towards z_w."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs
from cpo_ray.objectives.preference import NEEDS, PreferenceSettings, error_change, logistic_loss, preference_metrics


@torch.no_grad()
def stabilised_losing(prediction: Tensor, winning: Tensor, losing: Tensor) -> Tensor:
    """Return z_l' (B, ...) of CPO, Eq. 13: on the far side of ε_θ from z_l, as far from ε_θ as z_w is, per sample.

    If ε_θ = z_l there is no direction, and z_l' is ε_θ itself, since the original term has no gradient there.
    """
    # `normalize` divides by at least 1e-12, which is the guard: a zero vector stays zero.
    direction = functional.normalize((prediction - losing).flatten(1), dim=1)
    length: Tensor = torch.linalg.vector_norm((prediction - winning).flatten(1), dim=1, keepdim=True)
    return prediction + (direction * length).view_as(prediction)


def cpo_stabilised_loss(views: tuple[ViewOutputs, ...], settings: PreferenceSettings) -> LossAndMetrics:
    """Return -log sigmoid(-κ (win + |z_l' - ε_θ|² - |z_l' - ε_ref|²)) per sample (CPO, Eq. 14).

    With a = ε_θ - z_w and b = ε_θ - z_l the gradient has the direction 2|a| (a/|a| - b/|b|). It vanishes at z_w and on the ray
    from z_l beyond it. The value of the loss also falls as z_l' moves, so read progress off the metrics: `lose` is the original
    losing part, as in the paper's Fig. 5, and `lose_stabilised` the term that is trained. For κ and the other metrics see
    `cpo_ray.objectives.preference`.
    """
    (view,) = views
    reference, winning, losing = view.frozen("reference"), view.frozen("winning"), view.frozen("losing")
    displacement = view.prediction - reference
    win = error_change(displacement, winning - reference)
    lose_stabilised = error_change(displacement, stabilised_losing(view.prediction, winning, losing) - reference)
    lose = error_change(displacement.detach(), losing - reference)
    metrics = preference_metrics(win, lose, displacement) | {"lose_stabilised": lose_stabilised}
    return logistic_loss(win + lose_stabilised, settings), metrics


CPO_STABILISED = Objective(name="cpo_s", settings=PreferenceSettings, needs=NEEDS, function=cpo_stabilised_loss)

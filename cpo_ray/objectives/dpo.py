"""Diffusion-DPO (CPO, Eq. 9): two pictures of one prompt, of which the first is the better one."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.base import LossAndMetrics, Objective, View, ViewOutputs, mean_per_sample
from cpo_ray.objectives.preference import error_change, logistic_loss


class PairSettings(ObjectiveSettings):
    """How strongly a pair acts."""

    beta: PositiveFloat = 5000.0
    """β of the public Diffusion-DPO code: κ = β / 2 on the mean over C, H, W."""


def change_of(view: ViewOutputs) -> tuple[Tensor, Tensor]:
    """Return |ε - ε_θ|² - |ε - ε_ref|² per sample (B,), as means, and the mean square of ε_θ - ε_ref (B,), for the target ε."""
    reference = view.frozen("reference")
    displacement = view.prediction - reference
    return error_change(displacement, view.frozen("target") - reference), mean_per_sample(displacement.square())


def dpo_loss(views: tuple[ViewOutputs, ...], settings: PairSettings) -> LossAndMetrics:
    """Return -log sigmoid(-κ (win - lose)) per sample, κ = β / 2 (CPO, Eq. 9); ln 2 at the reference.

    `win` and `lose` are how much the model denoises the better and the worse picture worse than the reference does.
    """
    (win, moved), (lose, moved_too) = (change_of(view) for view in views)
    loss, share = logistic_loss(win - lose, settings.beta)
    with torch.no_grad():
        metrics = {
            "win": win,
            "lose": lose,
            "margin": lose - win,
            "implicit_accuracy": (win < lose).float(),
            "distance_to_reference": (moved + moved_too) / 2,
        }
    return loss, metrics | share


DPO = Objective(
    name="dpo",
    settings=PairSettings,
    needs=frozenset({"target", "reference"}),
    function=dpo_loss,
    views=(View(picture=0, text=0), View(picture=1, text=0)),
)

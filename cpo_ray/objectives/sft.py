"""Supervised fine-tuning: the ordinary denoising loss."""

from __future__ import annotations

from torch import Tensor

from cpo_ray.objectives.base import (
    FrozenOutputs,
    LossAndMetrics,
    Objective,
    ObjectiveParameters,
    mean_per_sample,
)


def sft_loss(prediction: Tensor, frozen: FrozenOutputs, parameters: ObjectiveParameters) -> LossAndMetrics:
    """Mean squared error of the prediction against the denoising target, per sample (CPO, section 5.1)."""
    loss = mean_per_sample((prediction - frozen.get("target")).square())
    return loss, {"loss": loss.detach()}


SFT = Objective(name="sft", needs=frozenset({"target"}), function=sft_loss)

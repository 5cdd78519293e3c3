"""Make the optimizer that a configuration names."""

from __future__ import annotations

import torch
from torch import nn

from cpo_ray.config import Optimization
from cpo_ray.training.health import TrainingHealthError
from cpo_ray.training.schedule import BFLOAT16_SHARE, VISIBLE_SHARE, largest_change, swallowed

_LOOKED_AT = 4096  # weights per tensor that the check looks at


def make_optimizer(parameters: list[nn.Parameter], optimization: Optimization) -> torch.optim.Optimizer:
    """Return an optimizer of the named kind. Its learning rate is about the distance that a weight moves per step.

    Raises ImportError if its package is missing, which `config.optimization.missing_package` reports beforehand.
    """
    learning_rate, weight_decay = optimization.learning_rate, optimization.weight_decay
    if optimization.optimizer == "adafactor":
        # Adafactor (Shazeer and Stern 2018) without relative steps and momentum, as in the public Diffusion-DPO code for SDXL.
        # torch multiplies the rate by the larger of a tensor's root mean square and the second epsilon, so 1 makes the rate
        # absolute. The first epsilon is squared, since it bounds a variance.
        return torch.optim.Adafactor(parameters, lr=learning_rate, eps=(1e-15, 1.0), weight_decay=weight_decay)
    if optimization.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)
        return eight_bit
    # One kernel updates all tensors. torch's default on a GPU briefly holds another copy of the weights.
    fused = torch.cuda.is_available() and not optimization.offload_optimizer
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused or None)


def check_learning_rate(denoiser: nn.Module, steps: int, optimization: Optimization) -> None:
    """Raise TrainingHealthError if a model in bfloat16 would hardly change: all steps together move too few weights visibly.

    The optimizer's float32 copies would still move, so nothing would show the fault. A learning rate per sample that was not
    multiplied by the batch is a typical cause. A LoRA passes, since half of it starts at 0.
    """
    change, visible, count = largest_change(steps, optimization), 0.0, 0
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            few = parameter.detach().flatten()[:: max(1, parameter.numel() // _LOOKED_AT)].float()
            visible += float((few.abs() * BFLOAT16_SHARE <= change).float().mean()) * parameter.numel()
            count += parameter.numel()
    if visible < VISIBLE_SHARE * count:
        raise TrainingHealthError(swallowed(change, visible / count))

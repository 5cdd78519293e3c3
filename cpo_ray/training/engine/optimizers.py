"""The optimizers that a configuration can name."""

from __future__ import annotations

import torch
from torch import nn

from cpo_ray.config import Optimization
from cpo_ray.training.health import TrainingHealthError
from cpo_ray.training.schedule import BFLOAT16_SHARE, VISIBLE_SHARE, largest_change, swallowed

_LOOKED_AT = 4096  # weights of a tensor


def make_optimizer(parameters: list[nn.Parameter], optimization: Optimization) -> torch.optim.Optimizer:
    """An optimizer of the named kind, whose learning rate is about what a weight moves in a step. Raises ImportError for a
    package that is not there, which `settings.missing_package` tells beforehand."""
    learning_rate, weight_decay = optimization.learning_rate, optimization.weight_decay
    if optimization.optimizer == "adafactor":
        # Shazeer and Stern (2018) without relative steps and without momentum, as the public Diffusion-DPO code has it for SDXL.
        # torch multiplies the rate by a tensor's root mean square or by the second epsilon, whichever is larger: with 1 the
        # rate is absolute. The first is squared where it bounds a variance.
        return torch.optim.Adafactor(parameters, lr=learning_rate, eps=(1e-15, 1.0), weight_decay=weight_decay)
    if optimization.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)
        return eight_bit
    # One kernel for all tensors; torch's default on a GPU holds another copy of the weights for a moment.
    fused = torch.cuda.is_available() and not optimization.offload_optimizer
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused or None)


def check_learning_rate(denoiser: nn.Module, steps: int, optimization: Optimization) -> None:
    """For a model in bfloat16: raises TrainingHealthError if all steps together move too few of the trained weights visibly.

    The optimizer's float32 copies would move all the same, and nobody would see it. A learning rate per sample that was not
    multiplied by the batch is of that kind. A LoRA passes, since half of it starts at 0.
    """
    change, visible, count = largest_change(steps, optimization), 0.0, 0
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            few = parameter.detach().flatten()[:: max(1, parameter.numel() // _LOOKED_AT)].float()
            visible += float((few.abs() * BFLOAT16_SHARE <= change).float().mean()) * parameter.numel()
            count += parameter.numel()
    if visible < VISIBLE_SHARE * count:
        raise TrainingHealthError(swallowed(change, visible / count))

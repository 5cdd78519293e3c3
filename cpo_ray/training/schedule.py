"""The learning rate as a function of the step. No torch, so that a run can be judged before it starts."""

from __future__ import annotations

import math

from cpo_ray.config import Optimization

#: bfloat16 has 8 significant bits: a change of less than a 512th of a weight is rounded away, whatever its size.
BFLOAT16_SHARE = 2.0**-9
#: A training in bfloat16 must be able to move as large a share of its weights.
VISIBLE_SHARE = 0.02


def warmup_of(steps: int, optimization: Optimization) -> int:
    """Return the steps of the warm-up in a training of so many steps."""
    return round(optimization.warmup_share * steps) if optimization.warmup_share else optimization.warmup_steps


def learning_rate_at(step: int, steps: int, optimization: Optimization) -> float:
    """Return the rate of a step, from 0: a linear warm-up that begins above 0, then a constant or half a cosine that ends above
    0.
    """
    warmup = warmup_of(steps, optimization)
    if step < warmup:
        return optimization.learning_rate * (step + 1) / warmup
    if optimization.decay == "constant":
        return optimization.learning_rate
    return optimization.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def largest_change(steps: int, optimization: Optimization) -> float:
    """Return the largest distance that a weight can move in all steps. The optimizers here move it by about the learning rate per
    step.
    """
    return sum(learning_rate_at(step, steps, optimization) for step in range(steps))


def swallowed(change: float, visible: float) -> str:
    """Return the warning about a training in bfloat16 whose `change` is visible in only a share `visible` of the weights."""
    return (
        f"the learning rates of all steps add up to {change:.1e}, and bfloat16 shows so small a change in {visible:.1%} of the "
        "weights: neither training nor whoever loads the result in bfloat16 would see it; raise learning_rate, train longer, or "
        "set model.dtype to float32"
    )

"""What the training engine holds on a rank: DeepSpeed's copies of weights, gradients and the optimizer's state.

Formulas, since nothing of the size is there before a run; a test measures what an engine holds and compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cpo_ray.config import Optimization
from cpo_ray.training.settings import bucket_size

#: Bytes that the optimizer remembers of a trained number; Adafactor's depend on the tensor's shape.
_STATE = {"adamw": 8, "adamw_8bit": 2}
_FLOAT32 = 4


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one rank by part. `step` is there while the weights are updated, when no activation is; `host` in main memory."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    step: int
    host: int

    @property
    def steady(self) -> int:
        """What stays on the device from step to step; gradients come and go with the activations."""
        return self.weights + self.optimizer + self.average


def engine_memory(
    optimization: Optimization, trained: Sequence[Sequence[int]], frozen: int, bytes_per_number: int, world_size: int
) -> EngineMemory:
    """For trained parameters of these shapes beside so many frozen numbers, in a model of 2 (bfloat16) or 4 bytes a number."""
    stage, size = optimization.zero_stage, bytes_per_number
    numbers = sum(map(math.prod, trained))
    share = math.ceil(numbers / world_size) if stage else numbers
    held = math.ceil((frozen + numbers) / world_size) if stage == 3 else frozen + numbers
    bucket = bucket_size(numbers) * size if stage or world_size > 1 else 0
    masters = _FLOAT32 * share if stage or size < _FLOAT32 else 0  # otherwise the weights are the optimizer's own
    optimizer = masters + _state(optimization, trained, share)
    average = _FLOAT32 * share if optimization.ema_decay else 0
    step = _FLOAT32 * (bucket_size(share) if stage == 3 else share) if size < _FLOAT32 else 0
    gradients = size * (numbers if stage < 2 else share) + bucket
    gathered = size * 3 * bucket_size(frozen + numbers) if stage == 3 else 0
    if not optimization.offload_optimizer:
        return EngineMemory(size * held + gathered, gradients, optimizer, average, step, 0)
    # Gradients are moved to main memory as they come, in float32 and, on their way, in the model's dtype.
    host = optimizer + average + (_FLOAT32 + size) * share
    return EngineMemory(size * held + gathered, 2 * bucket, 0, 0, 0, host)


def checkpoint_bytes(optimization: Optimization, trained: Sequence[Sequence[int]]) -> int:
    """One checkpoint on disk: float32 weights, what the optimizer remembers, and the moving average, all of them whole."""
    numbers = sum(map(math.prod, trained))
    copies = 2 if optimization.ema_decay else 1
    return copies * _FLOAT32 * numbers + _state(optimization, trained, numbers)


def _state(optimization: Optimization, trained: Iterable[Sequence[int]], share: int) -> int:
    if optimization.optimizer == "adafactor":
        return _FLOAT32 * sum(map(_factored, trained))
    return _STATE[optimization.optimizer] * share


def _factored(shape: Sequence[int]) -> int:
    """Numbers of Adafactor for a tensor: means over its last and last but one dimension, or all of a vector."""
    numbers = math.prod(shape)
    return numbers // shape[-1] + numbers // shape[-2] if len(shape) > 1 else numbers

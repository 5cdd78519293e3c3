"""What the training engine holds on a rank: DeepSpeed's copies of weights, gradients and optimizer state.

These are formulas, since nothing of that size exists before a run. A test compares them with what an engine holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cpo_ray.config import Optimization
from cpo_ray.config.optimization import bucket_size

#: Bytes of optimizer state per trained number. Adafactor's depends on the tensor's shape.
_STATE = {"adamw": 8, "adamw_8bit": 2}
_FLOAT32 = 4


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one rank by part: on its device, and `host` in main memory.

    `buffers` exist all the time. `passing` exists during a backward pass. `step` exists while weights are updated, when there are
    no activations any more.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    buffers: int
    passing: int
    step: int
    host: int


def engine_memory(
    optimization: Optimization,
    trained: Sequence[Sequence[int]],
    frozen: int,
    bytes_per_number: int,
    world_size: int,
    accumulation: int = 1,
) -> EngineMemory:
    """Return the memory for `trained` parameters of these shapes and `frozen` other numbers, in a model of 2 or 4 bytes per
    number.
    """
    stage, size = optimization.zero_stage, bytes_per_number
    numbers, largest = sum(map(math.prod, trained)), max(map(math.prod, trained))
    share = math.ceil(numbers / world_size) if stage else numbers
    every = frozen + numbers
    bucket = size * bucket_size(numbers) if stage or world_size > 1 else 0
    # Without ZeRO a float32 model has no extra copy in the optimizer.
    optimizer = _state(optimization, trained, share) + (_FLOAT32 * share if stage or size < _FLOAT32 else 0)
    average = _FLOAT32 * share if optimization.ema_decay else 0
    gathered = size * min(3 * bucket_size(every), every) if stage == 3 and world_size > 1 else 0
    unreduced = size * numbers if stage == 1 and accumulation > 1 else 0  # ZeRO-1 reduces with the last micro-batch
    on_device = EngineMemory(
        weights=size * (math.ceil(every / world_size) if stage == 3 else every),
        gradients=size * share,
        optimizer=optimizer,
        average=average,
        buffers=gathered + bucket if stage == 3 else 0,
        passing=unreduced + (0 if stage == 3 else bucket),
        step=_FLOAT32 * (bucket_size(share) if stage == 3 else share) if size < _FLOAT32 else 0,
        host=0,
    )
    if not optimization.offload_optimizer:
        return on_device
    # Gradients move to main memory as they arise, in the model's dtype and in float32; at ZeRO 1 and 2 through buffers.
    moved = 0 if stage == 3 else size * largest
    host = optimizer + average + (size + _FLOAT32) * share + moved
    return replace(on_device, gradients=0, optimizer=0, average=0, buffers=on_device.buffers + moved, step=0, host=host)


def checkpoint_bytes(optimization: Optimization, trained: Sequence[Sequence[int]]) -> int:
    """Return the size of one checkpoint on disk: float32 weights, optimizer state and moving average, all whole."""
    numbers = sum(map(math.prod, trained))
    copies = 2 if optimization.ema_decay else 1
    return copies * _FLOAT32 * numbers + _state(optimization, trained, numbers)


def _state(optimization: Optimization, trained: Iterable[Sequence[int]], share: int) -> int:
    if optimization.optimizer == "adafactor":
        return _FLOAT32 * sum(map(_factored, trained))
    return _STATE[optimization.optimizer] * share


def _factored(shape: Sequence[int]) -> int:
    """Return how many numbers Adafactor stores for a tensor: means over the last two dimensions, or all numbers of a vector."""
    numbers = math.prod(shape)
    return numbers // shape[-1] + numbers // shape[-2] if len(shape) > 1 else numbers

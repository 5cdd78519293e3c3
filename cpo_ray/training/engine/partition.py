"""Locate the float32 numbers of each trained parameter in the optimizer on this rank, in the same form for every ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True, eq=False)
class Fragment:
    """This rank's share of one trained parameter: `length` numbers of `owner`, a float32 tensor that the optimizer steps.

    They begin at `start` in the flattened owner and at `offset` in the flattened parameter of shape `shape`. Without ZeRO the
    owner is the parameter, or its float32 copy, and every rank's share is the whole.
    """

    owner: Tensor
    start: int
    length: int
    offset: int
    shape: torch.Size
    replicated: bool

    def of(self, values: Tensor) -> Tensor:
        """Return this share of a tensor laid out like `owner`, as a flat view."""
        return values.detach().view(-1)[self.start : self.start + self.length]

    def whole(self, values: Tensor, device: torch.device) -> Tensor:
        """Return the parameter's numbers, in its own shape, from such tensors of all ranks; only rank 0's result counts.
        Collective.
        """
        if self.replicated:
            return values.detach()
        buffer = torch.zeros(self.shape.numel(), dtype=values.dtype, device=device)
        buffer[self.offset : self.offset + self.length] = self.of(values)
        distributed.reduce(buffer, 0)  # every number comes from one rank, so the sum is exact
        return buffer.view(self.shape)

    def put(self, values: Tensor, whole: Tensor) -> None:
        """Copy this rank's share of a whole parameter into a tensor laid out like `owner`."""
        self.of(values).copy_(whole.reshape(-1)[self.offset : self.offset + self.length])


def fragments(engine: Any, parameters: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> dict[str, Fragment]:
    """Return the fragment of each trained parameter in a DeepSpeed engine. `shapes` are the shapes before ZeRO split the
    parameters.
    """
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    found = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        shape = shapes[name]
        if stage == 0:
            owner = zero.fp32_groups[0][index] if engine.bfloat16_enabled() else parameter
            found[name] = Fragment(owner, 0, shape.numel(), 0, shape, replicated=True)
        elif stage < 3:
            (owner,) = zero.single_partition_of_fp32_groups
            start, length, offset = 0, 0, 0
            if (mapping := parameter._hp_mapping) is not None:  # None if the rank holds nothing of the parameter
                start, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
                offset = mapping.lp_fragment_address.start
            found[name] = Fragment(owner, start, length, offset, shape, replicated=False)
        else:
            group, start, size = zero.grad_position[zero.get_param_id(parameter)]
            offset = min(distributed.get_rank() * size, shape.numel())
            length = min(size, shape.numel() - offset)  # the last ranks' shares are padded
            owner = zero.fp32_partitioned_groups_flat[group]
            found[name] = Fragment(owner, start, length, offset, shape, replicated=False)
    return found


def publish(engine: Any) -> None:
    """Make the model compute with the current float32 numbers of the optimizer. Collective."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        zero.checkpoint_event_prologue()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero.checkpoint_event_epilogue()  # gathers the small parameters that ZeRO-3 keeps whole
    elif stage:
        zero.update_lp_params()
    elif engine.bfloat16_enabled():
        for parameter, master in zip(zero.fp16_groups[0], zero.fp32_groups[0], strict=True):
            parameter.data.copy_(master.detach())


def model_weights(engine: Any, parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Return the weights that this rank's model computes with: all trained weights, or its partitions at ZeRO-3."""
    if engine.zero_optimization_stage() == 3:
        return [flat.detach() for flat in engine.optimizer.fp16_partitioned_groups_flat]
    return [parameter.detach() for parameter in parameters.values()]

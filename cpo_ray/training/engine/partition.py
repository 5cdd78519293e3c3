"""Where the optimizer keeps the float32 numbers of each trained parameter on this rank: the same question at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True, eq=False)
class Fragment:
    """This rank's share of one trained parameter: `length` numbers of `owner`, a float32 tensor that the optimizer steps.

    They lie from `start` on in the flattened owner, and are those from `offset` on in the flattened parameter of shape `shape`.
    Without ZeRO the owner is the parameter, or its float32 copy, and the share is all of it, on every rank.
    """

    owner: Tensor
    start: int
    length: int
    offset: int
    shape: torch.Size
    replicated: bool

    def of(self, values: Tensor) -> Tensor:
        """This share in a tensor that is laid out as `owner` is, as a flat view."""
        return values.detach().view(-1)[self.start : self.start + self.length]

    def whole(self, values: Tensor, device: torch.device) -> Tensor:
        """The parameter's numbers in such tensors of all ranks, in its own shape; only rank 0's answer counts. Collective."""
        if self.replicated:
            return values.detach()
        buffer = torch.zeros(self.shape.numel(), dtype=values.dtype, device=device)
        buffer[self.offset : self.offset + self.length] = self.of(values)
        distributed.reduce(buffer, 0)  # every number comes from one rank, so the sum is exact
        return buffer.view(self.shape)

    def put(self, values: Tensor, whole: Tensor) -> None:
        """Copy this rank's share of a whole parameter's numbers into a tensor that is laid out as `owner` is."""
        self.of(values).copy_(whole.reshape(-1)[self.offset : self.offset + self.length])


def fragments(engine: Any, parameters: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> dict[str, Fragment]:
    """The fragment of each trained parameter in a DeepSpeed engine; `shapes` are those from before ZeRO took them apart."""
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
            if (mapping := parameter._hp_mapping) is not None:  # None where the rank holds nothing of it
                start, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
                offset = mapping.lp_fragment_address.start
            found[name] = Fragment(owner, start, length, offset, shape, replicated=False)
        else:
            group, start, size = zero.grad_position[zero.get_param_id(parameter)]
            offset = min(distributed.get_rank() * size, shape.numel())
            length = min(size, shape.numel() - offset)  # the last ranks' shares are filled up
            owner = zero.fp32_partitioned_groups_flat[group]
            found[name] = Fragment(owner, start, length, offset, shape, replicated=False)
    return found


def publish(engine: Any) -> None:
    """Let the model compute with what the optimizer's float32 numbers are now. Collective."""
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
    """What this rank's model computes with: all trained weights, or at ZeRO-3 its partitions of them."""
    if engine.zero_optimization_stage() == 3:
        return [flat.detach() for flat in engine.optimizer.fp16_partitioned_groups_flat]
    return [parameter.detach() for parameter in parameters.values()]

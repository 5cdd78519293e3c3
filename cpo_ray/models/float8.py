"""Frozen linear layers in 8-bit floating point, for GPUs that compute twice as fast in it (compute capability 8.9 on).

It is lossy: each product is wrong by about 4 % on random data, and what is stored of θ1 are differences of outputs. It is
therefore an option, and for θ1 alone. `objectives.direction_cosine` measures the cost on given data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

_E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_E4M3).max
#: Matrix units take rows of a multiple of this many bytes.
_MULTIPLE = 16


class Float8Linear(nn.Module):
    """A linear layer (bfloat16 in and out) whose weights have a scale per output and whose inputs get one per token."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _quantised(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        rows, scale = _quantised(inputs.flatten(0, -2))
        per_row = ScalingType.RowWise
        output = scaled_mm(
            rows, self.weight.t(), scale, per_row, self.scale.t(), per_row, bias=self.bias, output_dtype=torch.bfloat16
        )
        unflattened: Tensor = output.unflatten(0, inputs.shape[:-1])
        return unflattened


def replace_linears(denoiser: nn.Module, blocks: Sequence[str]) -> int:
    """Replace the linear layers in blocks of these class names, except modulations; return the number replaced.

    A modulation sees one token per sample, so there is nothing to gain, and it scales everything after it.
    """
    replaced = 0
    for block in [module for module in denoiser.modules() if type(module).__name__ in blocks]:
        for path, linear in [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]:
            if "norm" in path or linear.in_features % _MULTIPLE or linear.out_features % _MULTIPLE:
                continue
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, Float8Linear(linear))
            replaced += 1
    return replaced


def _quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, K) in 8 bits, and the factors (N, 1) float32 that restore it."""
    scale = (matrix.abs().amax(dim=1, keepdim=True).float() / _LARGEST).clamp(min=1e-12)
    return (matrix / scale).to(_E4M3), scale

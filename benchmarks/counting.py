"""Count what a call takes: floating-point operations of products, convolutions and attention, and the kernels it starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """Operations in 10^12, a multiplication and an addition being two, and tensor operations that are no mere views."""

    teraflop: float
    kernels: int


def cost_of(call: Callable[[], Result]) -> tuple[Cost, Result]:
    """Count one eager call, and give what it returned."""
    # The counter has no formula for the CPU's fused attention, and does for its products.
    attention = nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)
    with attention, FlopCounterMode(display=False) as flops, _Kernels() as kernels:
        result = call()
    return Cost(flops.get_total_flops() / 1e12, kernels.count), result


class _Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.count += not function.is_view
        return function(*arguments, **(keywords or {}))

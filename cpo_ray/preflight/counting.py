"""Measure a call on the meta device: its peak memory and its operations, without computing a number.

Every allocation is followed from the operation that makes it until it is freed. A count therefore includes what a formula
forgets: which activations a backward pass keeps, what checkpointing computes again, which copies exist at the same time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Count:
    """Bytes at the peak, beyond what existed before, and floating-point operations (a product and its sum are two)."""

    peak: int
    flop: int


def count(call: Callable[[], Any], held: Iterable[nn.Module] = ()) -> Count:
    """Count a call that computes on the meta device. The weights of the modules `held` exist before it."""
    with _Counter(held) as counter, _fused_attention():
        call()
    return Count(counter.peak, counter.flop)


def count_forward(call: Callable[[], Any], held: Iterable[nn.Module]) -> Count:
    """Count a call that keeps nothing for a backward pass."""
    with torch.no_grad():
        return count(call, held)


def count_step(loss: Callable[[], Tensor], trained: nn.Module) -> Count:
    """Count a forward and its backward pass. Gradients of the weights belong to the trainer, so they are freed at once."""
    hooks = [
        parameter.register_post_accumulate_grad_hook(_let_go) for parameter in trained.parameters() if parameter.requires_grad
    ]
    try:
        # loss().backward() would keep a reference to the loss for too long.
        return count(lambda: torch.autograd.backward(loss()), [trained])
    finally:
        for hook in hooks:
            hook.remove()


class OnMeta(nn.Module):
    """Moves inputs from other devices to the meta device for a module, so that the caller may read the inputs' numbers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the module's own result, on the meta device."""
        return self.module(*map(_moved, arguments), **{name: _moved(value) for name, value in keywords.items()})


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _moved(entry) for name, entry in value.items()}
    return value.to("meta") if isinstance(value, Tensor) else value


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


class _Counter(TorchDispatchMode):
    def __init__(self, held: Iterable[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.flop = 0
        self._now = 0
        self._live: dict[int, Any] = {}
        for module in held:
            for values in (*module.parameters(), *module.buffers()):
                self._follow(values, 0)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        output = function(*arguments, **(keywords or {}))
        if formula := flop_registry.get(function.overloadpacket):
            self.flop += formula(*arguments, **(keywords or {}), out_val=output)
        for values in tree_leaves(output):
            if isinstance(values, Tensor) and values.device.type == "meta":
                self._follow(values, values.untyped_storage().nbytes())
        return output

    def _follow(self, values: Tensor, size: int) -> None:
        storage = values.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return  # a view, or a tensor that was changed in place

        def gone(_: Any) -> None:
            self._now -= size
            del self._live[key]

        self._live[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device torch would take attention apart, with a matrix of all pairs of tokens that no real kernel keeps."""
    original = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, is_causal: bool = False, **__: Any) -> Tensor:
        output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]
        return output

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original

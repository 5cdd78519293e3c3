"""Put an adapter into a denoiser, beside its weights or merged into them, and make sure that it is there and does something."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from cpo_ray.models.adapters.keys import AdapterError
from cpo_ray.models.adapters.reading import Adapter


def add(adapter: Adapter, denoiser: nn.Module, prefix: str, **options: Any) -> None:
    """Put the adapter beside the weights of a denoiser. Raises AdapterError if a layer did not take it."""
    mixin: Any = denoiser
    state, settings = {}, _settings(adapter)
    for name, factors in adapter.layers.items():
        state[f"{prefix}.{name}.lora_A.weight"], state[f"{prefix}.{name}.lora_B.weight"] = factors.down, factors.up
    mixin.load_lora_adapter(state, prefix=prefix, metadata={f"{prefix}.{k}": v for k, v in settings.items()}, **options)
    (loaded,) = mixin.peft_config
    tuned: dict[str, Any] = {name: module for name, module in denoiser.named_modules() if isinstance(module, BaseTunerLayer)}
    for name in sorted(tuned.keys() | adapter.layers.keys()):
        if name not in tuned or name not in adapter.layers:
            raise AdapterError(f"{adapter.file}: {name} of the denoiser did not take the adapter")
        module, factors = tuned[name], adapter.layers[name]
        up, scale = module.lora_B[loaded].weight, factors.alpha / len(factors.down)
        if not torch.equal(up, factors.up.to(up)) or abs(module.scaling[loaded] - scale) > 1e-6 * abs(scale):
            raise AdapterError(f"{adapter.file}: {name} of the denoiser holds another update than the file, or another scale")


def merge(adapter: Adapter, denoiser: nn.Module, prefix: str) -> None:
    """Add the adapter's updates to the weights of a denoiser. Raises AdapterError if no weight changes."""
    add(adapter, denoiser, prefix)
    changed = 0
    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            tuned: Any = module
            before = tuned.weight.detach().clone()
            tuned.merge()
            changed += not torch.equal(before, tuned.weight)
    if not changed:
        raise AdapterError(
            f"{adapter.file} changes no weight: its updates are smaller than what the denoiser's {before.dtype} can show; "
            "set model.dtype to float32"
        )
    mixin: Any = denoiser
    mixin.unload_lora()


def _settings(adapter: Adapter) -> dict[str, Any]:
    """Return PEFT's settings: the most frequent rank and alpha, and by layer those that differ."""
    ranks = {name: len(factors.down) for name, factors in adapter.layers.items()}
    alphas = {name: factors.alpha for name, factors in adapter.layers.items()}
    (rank, _), (alpha, _) = Counter(ranks.values()).most_common(1)[0], Counter(alphas.values()).most_common(1)[0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(adapter.layers),
    }

"""The names that programs give to an adapter's tensors, and the layers that they mean.

Read are diffusers (`unet.…lora_A.weight`, older `….lora.down.weight` and attention processors), PEFT (`base_model.model.…`),
kohya's scripts (`lora_unet_…lora_down.weight`, under the original code's names and under diffusers') and ComfyUI
(`diffusion_model.…`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from cpo_ray.config import ConfigError
from cpo_ray.models.adapters.formats import LayerPlace

Role = Literal["down", "up", "alpha"]


class AdapterError(ConfigError):
    """An adapter cannot be used; one sentence says what it holds and what is expected."""


class Key(NamedTuple):
    """The layer that a tensor belongs to, as the file names it, and what the tensor is."""

    layer: str
    role: Role


_ROLES: tuple[tuple[str, Role], ...] = (
    (r"\.lora_A(?:\.default)?\.weight", "down"),
    (r"\.lora_B(?:\.default)?\.weight", "up"),
    (r"\.lora_down\.weight", "down"),
    (r"\.lora_up\.weight", "up"),
    (r"[._]lora\.down\.weight", "down"),
    (r"[._]lora\.up\.weight", "up"),
    (r"\.alpha", "alpha"),
)
#: Parts of names that only other kinds of adapters have.
_OTHER_KINDS = {
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "boft_": "BOFT",
    "ia3_": "IA³",
    "lora_mid": "a LoRA with a core tensor (CP decomposition)",
    "lora_controlnet": "a control LoRA",
    "lora_B.bias": "a LoRA with biases",
}
_TEXT_ENCODER = re.compile(r"(lora_te\d?_|text_encoder|te\d?\.|text_encoders\.|base_model\.model\.text_model|cond_stage_model)")
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "lora_unet_", "lora_transformer_")


def parsed(name: str) -> Key:
    """Return what a tensor's name says. Raises AdapterError for another kind of adapter, and for a text encoder's."""
    if _TEXT_ENCODER.match(name):
        raise AdapterError(
            f"it also changes a text encoder ({name}), which stays as the base's here; save the adapter of the denoiser alone"
        )
    for part, kind in _OTHER_KINDS.items():
        if part in name:
            raise AdapterError(f"it is {kind} ({name}), and LoRA alone is read; merge it into a denoiser of its own")
    for pattern, role in _ROLES:
        if match := re.fullmatch(rf"(.+?){pattern}", name):
            return Key(match[1], role)
    raise AdapterError(f"it has a tensor {name}, which is not one of a LoRA")


@dataclass(frozen=True)
class Layers:
    """The layers of a denoiser that can have a LoRA, by their names in diffusers, and all names that files have for them.

    `prefix` is the denoiser's folder in a pipeline, which diffusers' files put before each name.
    """

    prefix: str
    modules: Mapping[str, nn.Linear | nn.Conv2d]
    names: Mapping[str, LayerPlace]

    def place(self, layer: str) -> LayerPlace | None:
        """Return the layers of diffusers that a file's name means, one after the other; None for a name that fits none."""
        for prefix in _PREFIXES:
            layer = layer.removeprefix(prefix)
        layer = layer.removeprefix(f"{self.prefix}.")
        # An attention processor of older diffusers holds the LoRA of the layer beside it.
        layer = layer.replace(".processor.", ".")
        return self.names.get(layer.removesuffix(".to_out") + ".to_out.0" if layer.endswith(".to_out") else layer)

    def outputs(self, name: str) -> int:
        """Return the rows of a layer's weight."""
        return int(self.modules[name].weight.shape[0])


def layers_of(denoiser: nn.Module, prefix: str, original_place: Callable[[Any, str], LayerPlace]) -> Layers:
    """Return the layers of a denoiser, with or without weights."""
    any_denoiser: Any = denoiser
    modules = {name: module for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    names: dict[str, LayerPlace] = {}
    for name in modules:
        try:
            place = original_place(any_denoiser.config, name)
        except KeyError:  # the original code has no such layer
            pass
        else:
            names |= _spellings(place.path, place)
        names |= _spellings(name, LayerPlace(name, (name,)))
    return Layers(prefix, modules, names)


def foreign(names: Iterable[str]) -> AdapterError:
    """Return the error about layers that the base does not have."""
    unknown = sorted(names)
    more = f" and {len(unknown) - 2:,} more" if len(unknown) > 2 else ""
    return AdapterError(f"it is for another model: this base has no layer {', '.join(unknown[:2])}{more}")


def _spellings(name: str, place: LayerPlace) -> dict[str, LayerPlace]:
    return {name: place, name.replace(".", "_"): place}

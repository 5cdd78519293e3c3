"""Read a LoRA in any format that people have, as factors of diffusers' layers, with the scale that it was trained with."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn

from cpo_ray.config import ConfigError
from cpo_ray.models.adapters.keys import AdapterError, Layers, foreign, parsed
from cpo_ray.models.bases.weights import PICKLES, pickles_among, read_header, read_metadata, read_object

#: What diffusers and PEFT call the one file of an adapter in its folder.
_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
#: PEFT's settings of an adapter. It may also lie beside a file that says no alpha itself.
SETTINGS = "adapter_config.json"


class Factors(NamedTuple):
    """The update alpha / r · up down of one layer: down (r, in) and up (out, r), of a convolution with its kernel."""

    down: Tensor
    up: Tensor
    alpha: float


@dataclass(frozen=True)
class Adapter:
    """A LoRA: factors by the layers' names in diffusers."""

    file: Path
    layers: Mapping[str, Factors]

    def __str__(self) -> str:
        ranks = {len(factors.down) for factors in self.layers.values()}
        scales = {factors.alpha / len(factors.down) for factors in self.layers.values()}
        return f"{self.file} is a LoRA of {len(self.layers)} layers, rank {_range(ranks)}, scaled by {_range(scales)}"


def adapter_file(path: Path) -> Path:
    """Return the file of an adapter, which is given itself or by its folder. Raises AdapterError."""
    if path.is_file():
        if path.suffix.lower() in PICKLES:
            raise AdapterError(f"{path} is a pickle, which can run code and is never opened; save it as .safetensors")
        return path
    if not path.is_dir():
        raise AdapterError(f"there is nothing at {path}")
    found = sorted(path.glob("*.safetensors"))
    chosen = [file for file in found if file.name in _NAMES] or found
    if not chosen and (pickles := pickles_among(file.name for file in path.iterdir())):
        raise AdapterError(f"{path} has only {', '.join(pickles)}, a pickle, which can run code and is never opened")
    if not chosen:
        raise AdapterError(f"{path} has no .safetensors file; name the adapter's file or its folder")
    if len(chosen) > 1:
        raise AdapterError(f"{path} has {len(chosen)} adapters ({', '.join(file.name for file in chosen[:3])}); name one file")
    return chosen[0]


def read_adapter(path: Path, layers: Layers) -> Adapter:
    """Return the adapter at a path for a denoiser with these layers.

    Raises AdapterError if it is no whole LoRA of such a denoiser, does not say its alpha, or changes nothing.
    """
    file = adapter_file(path)
    try:
        names = list(read_header(file))
        settings = _settings(file, layers.prefix)
        if settings.get("use_dora") or settings.get("bias", "none") != "none":
            raise AdapterError("it is DoRA or trains biases, and LoRA alone is read")
        grouped = _grouped(names, layers)
        tensors = load_file(file)
        found: dict[str, Factors] = {}
        for layer, roles in grouped.items():
            pieces = _pieces(layer, {role: tensors[name] for role, name in roles.items()}, layers, settings)
            if twice := sorted(found.keys() & pieces):
                raise AdapterError(f"it has {twice[0]} twice, under two names")
            found |= pieces
    except AdapterError as error:
        raise AdapterError(f"{file}: {error}") from None
    except ConfigError as error:
        raise AdapterError(str(error)) from None
    if not any(bool(factors.up.any()) and bool(factors.down.any()) for factors in found.values()):
        raise AdapterError(f"{file} changes nothing: every update in it is zero")
    return Adapter(file, found)


def _grouped(names: Iterable[str], layers: Layers) -> dict[str, dict[str, str]]:
    """Return the file's layers with the tensors of each by role. Raises AdapterError where one is unknown or lacks a factor."""
    grouped: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        layer, role = parsed(name)
        grouped[layer][role] = name
    if unknown := [layer for layer in grouped if layers.place(layer) is None]:
        raise foreign(unknown)
    if lacking := [layer for layer, roles in grouped.items() if not {"down", "up"} <= roles.keys()]:
        raise AdapterError(f"{lacking[0]} has only one of a LoRA's two factors")
    if not grouped:
        raise AdapterError("it holds no tensors")
    return grouped


def _pieces(layer: str, tensors: Mapping[str, Tensor], layers: Layers, settings: Mapping[str, Any]) -> dict[str, Factors]:
    """Return the factors of the layers of diffusers that one of a file stands for, without what is zero in a fused one."""
    place = layers.place(layer)
    assert place is not None
    down, up = tensors["down"], tensors["up"]
    rank = len(down)
    alpha = float(tensors["alpha"]) if "alpha" in tensors else _alpha(place.parts[0], rank, settings)
    if not bool(down.isfinite().all() and up.isfinite().all()):
        raise AdapterError(f"{layer} has numbers that are not finite")
    if len(place.parts) == 1:
        return {place.parts[0]: _fitting(place.parts[0], Factors(down, up, alpha), layers)}
    sizes = [layers.outputs(part) for part in place.parts]
    if len(up) != sum(sizes):
        raise AdapterError(f"{layer} has {len(up)} outputs, and the base's has {sum(sizes)}: it is for another model")
    found = {}
    for part, rows in zip(place.parts, up.split(sizes), strict=True):
        used = rows.any(dim=0)  # what was fused from several LoRAs has blocks of zeros
        if bool(used.any()):
            kept = Factors(down[used], rows[:, used].contiguous(), alpha / rank * int(used.sum()))
            found[part] = _fitting(part, kept, layers)
    return found


def _fitting(name: str, factors: Factors, layers: Layers) -> Factors:
    """Return factors of a layer's own shape. Raises AdapterError for those of another."""
    module, (down, up, alpha) = layers.modules[name], factors
    if isinstance(module, nn.Linear) and down.ndim == 4:  # a convolution of 1 x 1 in the original code
        down, up = down.flatten(1), up.flatten(1)
    shape = tuple(module.weight.shape)
    if len(up) != shape[0] or tuple(down.shape[1:]) != shape[1:] or up.shape[1] != len(down):
        found = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise AdapterError(f"its factors of {name} are {found}, and the base's weight is {shape}: it is for another model")
    return Factors(down, up, alpha)


def _settings(file: Path, prefix: str) -> dict[str, Any]:
    """Return PEFT's settings of an adapter, which diffusers keeps in the file and PEFT beside it; empty without any."""
    text = read_metadata(file).get("lora_adapter_metadata")
    if text is not None:
        try:
            return {name.removeprefix(f"{prefix}."): value for name, value in json.loads(text).items()}
        except (ValueError, AttributeError):
            raise AdapterError("its lora_adapter_metadata is no JSON object") from None
    beside = file.with_name(SETTINGS)
    return read_object(beside) if beside.is_file() else {}


def _alpha(module: str, rank: int, settings: Mapping[str, Any]) -> float:
    """Return a layer's alpha by the adapter's settings. Raises AdapterError if they say none."""
    alpha = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    if not isinstance(alpha, int | float):
        raise AdapterError(
            f"it does not say its alpha, by which it is scaled; write it beside the file as {SETTINGS}: "
            f'{{"lora_alpha": {rank}}} if the training left it at the rank'
        )
    return float(alpha) * (rank**0.5 if settings.get("use_rslora") else 1.0)


def _range(values: Iterable[float]) -> str:
    least, most = min(values), max(values)
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"

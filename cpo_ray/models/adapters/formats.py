"""A LoRA under the names of kohya's scripts and of ComfyUI: the layers of the architecture's original code.

Both formats store alpha as a tensor beside each layer. ComfyUI reads no other alpha, so it scales diffusers' own file wrongly
unless alpha equals the rank.

One layer of the original code often computes what diffusers computes in several (FLUX's query, key and value). Their LoRAs become
one LoRA of the summed rank, whose second factor has them as blocks on its diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor


class LayerPlace(NamedTuple):
    """A layer of the original code, and the diffusers layers whose outputs it gives, one after the other."""

    path: str
    parts: tuple[str, ...]


def write_lora_formats(
    layers: Mapping[str, Tensor], scale: float, place: Callable[[str], LayerPlace], outputs: Callable[[str], int], folder: Path
) -> None:
    """Write `kohya.safetensors` and `comfyui.safetensors`.

    `layers` holds A (r, in) and B (out, r) as `<layer>.lora_A.weight` and `<layer>.lora_B.weight`; the update is scale · B A.
    `outputs` gives the number of features of a layer, for parts of an original layer that the LoRA does not adapt.
    """
    kohya, comfyui = {}, {}
    for path, tensors in original_layers(layers, scale, place, outputs).items():
        for name, tensor in tensors.items():
            kohya[f"lora_unet_{path.replace('.', '_')}.{name}"] = tensor
            comfyui[f"diffusion_model.{path}.{name}"] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(kohya, folder / "kohya.safetensors")
    save_file(comfyui, folder / "comfyui.safetensors")


def original_layers(
    layers: Mapping[str, Tensor], scale: float, place: Callable[[str], LayerPlace], outputs: Callable[[str], int]
) -> dict[str, dict[str, Tensor]]:
    """Return original path → `lora_down.weight` (R, in), `lora_up.weight` (out, R) and `alpha` (), with scale = alpha / R."""
    modules = {name.removesuffix(".lora_A.weight") for name in layers if name.endswith(".lora_A.weight")}
    found: dict[str, dict[str, Tensor]] = {}
    for path, parts in sorted({place(module) for module in modules}):
        adapted = [part for part in parts if part in modules]
        down = torch.cat([layers[f"{part}.lora_A.weight"] for part in adapted])
        ups = [layers[f"{part}.lora_B.weight"] for part in adapted]
        up = ups[0] if len(parts) == 1 else _on_the_diagonal(dict(zip(adapted, ups, strict=True)), parts, outputs)
        alpha = torch.tensor(scale * len(down), dtype=torch.float32)
        found[path] = {"lora_down.weight": down, "lora_up.weight": up.contiguous(), "alpha": alpha}
    return found


def _on_the_diagonal(ups: Mapping[str, Tensor], parts: tuple[str, ...], outputs: Callable[[str], int]) -> Tensor:
    """Return (sum of all parts' outputs, sum of the adapted parts' ranks). Rows of a part without adapter are zero."""
    blocks = [ups[part] if part in ups else torch.zeros(outputs(part), 0) for part in parts]
    diagonal: Tensor = torch.block_diag(*blocks)
    return diagonal

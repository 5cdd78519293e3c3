"""The trained weights as diffusers and others read them, published only if, loaded back, they give the trained model's output."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml
from torch import Tensor, nn

from cpo_ray.config import Model
from cpo_ray.models.base import Conditioning, Family, base_source
from cpo_ray.training.ledger import write_text

#: Allowed relative distance of two outputs that differ by rounding alone, and of the adapter's own effect besides.
_ROUNDING = {"float32": 1e-5, "bfloat16": 3e-2}
_SHARE_OF_CHANGE = 0.05
_NO_CHANGE = 1e-6

#: Where a LoRA lies in the key formats of other programs.
FORMATS = "formats"

PUBLISHED_LICENCES = {
    "toy": "Apache-2.0",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
    "black-forest-labs/FLUX.1-dev": "flux-1-dev-non-commercial-license",
    "black-forest-labs/FLUX.1-schnell": "apache-2.0",
}


class ExportError(ValueError):
    """The written files do not do what the trained model does; nothing was published."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Fixed inputs and the trained model's output for them: x_t and output (B, C, h, w), the rest as a target batch has them."""

    x_t: Tensor
    timestep: Tensor
    conditioning: Conditioning
    output: Tensor


def probe_output(family: Family, denoiser: nn.Module, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
    """(B, C, h, w) float32, from full float32 convolutions on GPUs, so that equal models differ by float32's rounding only."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return family.predict(denoiser, x_t, timestep, conditioning).float()


def export_adapter(
    family: Family,
    denoiser: nn.Module,
    state: dict[str, Tensor],
    model: Model,
    folder: Path,
    card: Mapping[str, str],
    probe: Probe,
    parameters: Literal["lora", "full"] = "lora",
) -> None:
    """Write the adapter, or with "full" the whole denoiser, and a model card; replaces what `folder` held.

    A LoRA also goes to `formats/`, as kohya's scripts and ComfyUI read it. `state` holds the trained parameters by name, whole
    (`Engine.trained_state`). Raises ExportError when the files, loaded on a fresh base, do not give `probe.output`, or when they
    change nothing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_weights(family, denoiser, state, model, partial, parameters)
        verify_export(family, model, partial, probe)
        if parameters == "lora":
            family.save_other_formats(denoiser, state, partial / FORMATS)
        (partial / "README.md").write_text(card_text(model, card, parameters))
        partial.chmod(0o755)  # temporary folders are closed to other users
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_weights(
    family: Family, denoiser: nn.Module, state: dict[str, Tensor], model: Model, folder: Path, parameters: Literal["lora", "full"]
) -> None:
    """The adapter, or with "full" the whole denoiser, of the whole trained `state`, as diffusers reads it."""
    if parameters == "lora":
        family.save_adapter(denoiser, state, folder)
    else:
        family.save_denoiser(model, state, folder)


def verify_export(family: Family, model: Model, folder: Path, probe: Probe) -> None:
    """Load `folder` on a fresh base, in float32, and compare outputs. Raises ExportError as `export_adapter` does."""
    exact = model.model_copy(update={"dtype": "float32"})
    base = _output(family, family.load_denoiser(exact), probe)
    reloaded = _output(family, family.load_denoiser(exact, adapter=folder), probe)
    size = float(probe.output.norm())
    change, error = float((reloaded - base).norm()), float((reloaded - probe.output).norm())
    # The error is allowed a share of the change, not only of the output: an adapter of small effect that is scaled wrongly
    # would otherwise pass.
    if not error <= _ROUNDING[model.dtype] * size + _SHARE_OF_CHANGE * change:
        raise ExportError(
            f"the exported weights, loaded back, differ from the trained model's output by {error / size:.1e} of its size; "
            "nothing was written; look for weights or metadata that the file format has lost (for a LoRA its alpha)"
        )
    if change <= _NO_CHANGE * size:
        raise ExportError(
            f"the exported weights change the base model's output by {change / size:.1e} of its size, which is nothing; "
            "train longer or with a larger learning rate"
        )


def _output(family: Family, denoiser: nn.Module, probe: Probe) -> Tensor:
    """On the probe's device, or on the CPU where the trained model leaves no room beside it."""
    device = probe.x_t.device if _fits(denoiser, probe.x_t.device) else torch.device("cpu")
    conditioning = {name: values.to(device) for name, values in probe.conditioning.items()}
    output = probe_output(family, denoiser.to(device), probe.x_t.to(device).float(), probe.timestep.to(device), conditioning)
    return output.to(probe.x_t.device)


def _fits(denoiser: nn.Module, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()
    size = sum(parameter.nbytes for parameter in denoiser.parameters())
    return torch.cuda.mem_get_info(device)[0] > 1.3 * size


def card_text(model: Model, card: Mapping[str, str], parameters: Literal["lora", "full"] = "lora") -> str:
    """A model card that diffusers' and the hub's readers understand; `card` gives the lines of its table."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in card.items())
    revision = f" at revision {model.revision}" if model.revision else ""
    licence = base_licence(model)
    head = {
        "library_name": "diffusers",
        "base_model": model.base,
        **({"license": "other", "license_name": licence} if licence else {}),
        "tags": ["text-to-image", model.family, "cpo", *(["lora"] if parameters == "lora" else [])],
    }
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# Trained on {model.base}\n\n"
        f"Weights for {model.base}{revision}, written by cpo_ray. "
        "Loaded back after the export, they gave the trained model's output.\n\n"
        f"{_usage(model.family, parameters)}\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        "Licence: these weights are a derivative of the base model and of the training pictures; the terms of both apply. "
        f"The base's: {licence or 'not stated where it was loaded from; look it up before you pass these on'}.\n"
    )


def add_evaluation(folder: Path, section: str) -> None:
    """Put an evaluation at the end of the model card in `folder`, or in the place of an earlier one; the rest stays as it is.

    `section` is Markdown that ends with a line feed. Nothing happens where the card was taken away.
    """
    card = folder / "README.md"
    if card.exists():
        text, marked = card.read_text(), f"{_EVALUATION[0]}\n{section}{_EVALUATION[1]}\n"
        before, begun, rest = text.partition(f"{_EVALUATION[0]}\n")
        _, _, after = rest.partition(f"{_EVALUATION[1]}\n")
        write_text(card, before + marked + after if begun else f"{text}\n{marked}")


def base_licence(model: Model) -> str | None:
    """The licence that a base states in its own model card, or that is known of a published one; None where nothing is stated."""
    card = Path(base_source(model)) / "README.md"
    if card.is_file() and (front := _FRONT_MATTER.match(card.read_text())):
        fields = yaml.safe_load(front[1])
        named = (fields.get("license_name"), fields.get("license")) if isinstance(fields, dict) else ()
        if stated := next((str(name) for name in named if name), None):
            return stated
    return PUBLISHED_LICENCES.get(model.base)


_EVALUATION = ("<!-- evaluation -->", "<!-- end of evaluation -->")
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


def _usage(family_name: str, parameters: Literal["lora", "full"]) -> str:
    """How diffusers loads an export."""
    if parameters == "lora":
        return (
            "`pipeline.load_lora_weights(FOLDER)` reads this folder; `formats/` holds the same for kohya's scripts and ComfyUI."
        )
    pipeline, denoiser, part = {
        "sdxl": ("StableDiffusionXLPipeline", "UNet2DConditionModel", "unet"),
        "flux": ("FluxPipeline", "FluxTransformer2DModel", "transformer"),
    }[family_name]
    return (
        "The denoiser alone, as diffusers saves it:\n\n"
        f'    {part} = {denoiser}.from_pretrained(FOLDER, subfolder="{part}")\n'
        f"    pipeline = {pipeline}.from_pretrained(BASE, {part}={part})"
    )

"""The trained weights in diffusers' format, published only after they were loaded back and gave the trained model's output."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cpo_ray.config import Model
from cpo_ray.models.base import Conditioning, Family

#: Allowed relative distance of two outputs that differ by rounding alone, and of the adapter's own effect besides.
_ROUNDING = {"float32": 1e-5, "bfloat16": 3e-2}
_SHARE_OF_CHANGE = 0.05
_NO_CHANGE = 1e-6


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
    """Write the adapter, or with "full" the whole denoiser below `unet/`, and a model card; replaces what `folder` held.

    `state` holds the trained parameters by name, whole (`Engine.trained_state`). Raises ExportError when the files, loaded on a
    fresh base, do not give `probe.output`, or when they change nothing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if parameters == "lora":
            family.save_adapter(denoiser, state, partial)
        else:
            _save_denoiser(family, model, state, partial)
        verify_export(family, model, partial, probe)
        (partial / "README.md").write_text(_card_text(model, card))
        partial.chmod(0o755)  # temporary folders are closed to other users
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def verify_export(family: Family, model: Model, folder: Path, probe: Probe) -> None:
    """Load `folder` on a fresh base, in float32, and compare outputs. Raises ExportError as `export_adapter` does."""
    exact = model.model_copy(update={"dtype": "float32"})
    base = _output(family, family.load_denoiser(exact), probe)
    if (folder / "unet").is_dir():
        fresh: Any = family.load_denoiser(exact)
        reloaded = _output(family, type(fresh).from_pretrained(folder, subfolder="unet").eval(), probe)
    else:
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
    return probe_output(family, denoiser.to(probe.x_t.device), probe.x_t.float(), probe.timestep, probe.conditioning)


def _save_denoiser(family: Family, model: Model, state: dict[str, Tensor], folder: Path) -> None:
    # Under ZeRO-3 the trained module is empty, so a fresh one carries the weights.
    fresh: Any = family.load_denoiser(model.model_copy(update={"dtype": "float32"}))
    fresh.load_state_dict(state)
    fresh.save_pretrained(folder / "unet")


def _card_text(model: Model, card: Mapping[str, str]) -> str:
    """A model card that diffusers' and the hub's readers understand; `card` gives the lines of its table."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in card.items())
    revision = f" at revision {model.revision}" if model.revision else ""
    return (
        f"---\nlibrary_name: diffusers\nbase_model: {model.base}\ntags: [text-to-image, {model.family}, cpo]\n---\n\n"
        f"# Trained on {model.base}\n\n"
        f"Weights for {model.base}{revision}, written by cpo_ray. "
        "Loaded back after the export, they gave the trained model's output.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        "Licence: these weights are a derivative of the base model and of the training pictures; the terms of both apply.\n"
    )

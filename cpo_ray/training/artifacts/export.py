"""Write the trained weights for diffusers and other programs, and publish them only if, loaded back, they give the trained
output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cpo_ray.config import Model
from cpo_ray.core.files import written_folder
from cpo_ray.models import family
from cpo_ray.models.adapters.keys import AdapterError
from cpo_ray.models.base import Conditioning, Family
from cpo_ray.training.artifacts.card import card_text

#: Allowed relative distance of two outputs that differ by rounding alone, and of the adapter's own effect besides.
_ROUNDING = {"float32": 1e-5, "bfloat16": 3e-2}
_SHARE_OF_CHANGE = 0.05
_NO_CHANGE = 1e-6

#: Where a LoRA lies in the key formats of other programs.
FORMATS = "formats"


class ExportError(ValueError):
    """The written files do not do what the trained model does. Nothing was published."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Fixed inputs and the trained model's output for them: x_t and output (B, C, h, w), the rest as in a target batch."""

    x_t: Tensor
    timestep: Tensor
    conditioning: Conditioning
    output: Tensor


@dataclass(frozen=True, eq=False)
class TrainedWeights:
    """A trained denoiser, and its trained parameters by name, whole (`Engine.trained_state`).

    These are an adapter's, or with "full" all of them.
    """

    model: Model
    denoiser: nn.Module
    state: dict[str, Tensor]
    parameters: Literal["lora", "full"] = "lora"

    def write(self, folder: Path) -> None:
        """Write the adapter or the whole denoiser as diffusers reads it."""
        found = family(self.model)
        if self.parameters == "lora":
            found.save_adapter(self.denoiser, self.state, folder)
        else:
            found.save_denoiser(self.model, self.state, folder)


def probe_output(found: Family, denoiser: nn.Module, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
    """Return (B, C, h, w) float32, with full float32 convolutions on GPUs, so that equal models differ by rounding only."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return found.predict(denoiser, x_t, timestep, conditioning).float()


def export_weights(trained: TrainedWeights, folder: Path, card: Mapping[str, str], probe: Probe) -> None:
    """Write the trained weights and a model card; replaces what `folder` held.

    A LoRA also goes to `formats/`, as kohya's scripts and ComfyUI read it. Raises ExportError when the files, loaded on a fresh
    base, do not give `probe.output`, or when they change nothing.
    """
    with written_folder(folder) as partial:
        trained.write(partial)
        verify_export(trained.model, partial, probe)
        if trained.parameters == "lora":
            family(trained.model).save_other_formats(trained.denoiser, trained.state, partial / FORMATS)
        (partial / "README.md").write_text(card_text(trained.model, card, trained.parameters), encoding="utf-8")


def verify_export(model: Model, folder: Path, probe: Probe) -> None:
    """Load `folder` on a fresh base, in float32, and compare outputs. Raises ExportError as `export_weights` does."""
    found, exact = family(model), model.model_copy(update={"dtype": "float32"})
    base = _output(found, found.load_denoiser(exact), probe)
    try:
        reloaded = _output(found, found.load_denoiser(exact, adapter=folder), probe)
    except AdapterError as reason:
        raise ExportError(f"the exported weights cannot be used: {reason}; train longer or with a larger learning rate") from None
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


def _output(found: Family, denoiser: nn.Module, probe: Probe) -> Tensor:
    """Compute on the probe's device, or on the CPU if the trained model leaves no room beside it."""
    device = probe.x_t.device if _fits(denoiser, probe.x_t.device) else torch.device("cpu")
    conditioning = {name: values.to(device) for name, values in probe.conditioning.items()}
    output = probe_output(found, denoiser.to(device), probe.x_t.to(device).float(), probe.timestep.to(device), conditioning)
    return output.to(probe.x_t.device)


def _fits(denoiser: nn.Module, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()
    size = sum(parameter.nbytes for parameter in denoiser.parameters())
    return torch.cuda.mem_get_info(device)[0] > 1.3 * size

"""A denoiser that was trained, as far as an export can tell: weights that are not the base's, and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from support.tiny_training import conditioning
from torch import Tensor, nn

from cpo_ray.config import Lora, Model
from cpo_ray.models import family
from cpo_ray.models.base import DTYPES
from cpo_ray.training.artifacts.export import (
    Probe,
    probe_output,
)

LORA = Lora(rank=4, alpha=16)


@dataclass
class Trained:
    model: Model
    denoiser: nn.Module
    state: dict[str, Tensor]
    probe: Probe


def trained(model: Model, change: float, lora: Lora | None = LORA) -> Trained:
    """A denoiser whose trained parameters, with `lora` None all of them, were moved by random numbers of the given size."""
    found, generator = family(model), torch.Generator().manual_seed(0)
    denoiser = found.load_denoiser(model)
    names = found.add_lora(denoiser, lora, seed=0) if lora else [n for n, _ in denoiser.named_parameters()]
    state = {}
    for name in names:
        parameter = denoiser.get_parameter(name).data
        if lora is None or "lora_B" in name:
            parameter += change * torch.randn(parameter.shape, generator=generator)
        state[name] = parameter.float()
    inputs: dict[str, Any] = {
        "x_t": torch.randn(2, 4, 8, 8, generator=generator).to(DTYPES[model.dtype]),
        "timestep": found.load_process(model).timestep(torch.tensor([0.1, 0.9], dtype=torch.float64)),
        "conditioning": conditioning(model, 2, generator),
    }
    return Trained(model, denoiser, state, Probe(**inputs, output=probe_output(found, denoiser, **inputs)))

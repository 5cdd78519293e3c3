"""What the encoders of families share whose texts diffusers' own pipeline encodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cpo_ray.config import Model

if TYPE_CHECKING:
    from cpo_ray.models.on_diffusers import DiffusersFamily


class PipelineEncoders:
    """`Encoders` of a folder or hub id. A subclass says what its conditioning is, and how many tokens a text has.

    `text` is the family's pipeline without denoiser and VAE.
    """

    def __init__(self, family: DiffusersFamily, model: Model, device: torch.device, vae: Path | None = None) -> None:
        self.device, self.latents = device, family.latents
        self.vae = family.load_vae(model, device, vae)
        self.text = family.load_text(model)

    def place_text(self, device: torch.device) -> None:
        self.text.to(device)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        return self.latents.encode(self.vae, pictures)

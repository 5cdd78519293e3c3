"""A base at its real size without its weights: every model on the meta device, for the planner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:  # the planner needs no diffusers until it builds a skeleton
    from cpo_ray.models.latents import LatentSpace


@dataclass(frozen=True)
class Configurations:
    """What the models of a base are built from, as diffusers and transformers name the settings.

    The scheduler's and the pipeline's own settings are needed for a whole pipeline only.
    """

    denoiser: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The models of a base on the meta device, which has shapes and no memory; frozen, in evaluation mode.

    Denoiser and text encoders are in the dtype of the model section, the VAE in float32. `text_tokens` holds the greatest number
    of tokens for each text encoder.
    """

    denoiser: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    text_tokens: tuple[int, ...]
    latents: LatentSpace

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return the (C, h, w) of the latent of a square picture with this side in pixels."""
        config = self.vae.config
        side = resolution // self.latents.factor(config)
        return self.latents.channels(config), side, side

    def tokens(self, encoder: int, prompts: int) -> Tensor:
        """Return (B, L) input ids of B prompts of the greatest length for one of the text encoders."""
        return torch.zeros(prompts, self.text_tokens[encoder], dtype=torch.long, device="meta")


@contextmanager
def made_in(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Create models inside the block directly on the device in this dtype, without float32 or main memory in between."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)

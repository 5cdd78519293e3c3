"""The latent space of a VAE: its size, and how pictures become latents and latents become pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from diffusers import AutoencoderKL
from torch import Tensor

from cpo_ray.config import ConfigError


class LatentSpace(Protocol):
    """What a class of VAE makes of pictures. `config` is the configuration of a VAE of this class."""

    vae_class: Any
    """Class of the VAE in diffusers."""
    same_space: tuple[str, ...]
    """Settings of `config` in which two VAEs agree when they have one latent space."""

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise ConfigError for a VAE whose latents are not encoded as `encode` does it."""

    def factor(self, config: Mapping[str, Any]) -> int:
        """Return the pixels of a picture's side per number of its latent's side."""

    def channels(self, config: Mapping[str, Any]) -> int:
        """Return the channels of a latent as the denoiser takes it."""

    def encode(self, vae: Any, pictures: Tensor) -> Tensor:
        """Encode (B, 3, H, W) in [-1, 1] to latents of the denoiser's scale, (B, C, h, w) float32 on the VAE's device.

        Takes the posterior's mean, so the result is deterministic.
        """

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode such latents to pictures (B, 3, H, W), about in [-1, 1]."""


class GaussianLatents:
    """The latents of diffusers' `AutoencoderKL`, which SDXL, SD 3 and FLUX.1 have: (mean - shift) · scale."""

    vae_class: Any = AutoencoderKL
    same_space: tuple[str, ...] = ("latent_channels", "scaling_factor", "shift_factor")

    def check(self, config: Mapping[str, Any]) -> None:
        for name in ("latents_mean", "latents_std"):
            if config.get(name) is not None:
                raise ConfigError(
                    f"the VAE's config.json has {name}, a scale for each channel of its latents; "
                    "bases with one scale for all channels are supported"
                )

    def factor(self, config: Mapping[str, Any]) -> int:
        return int(2 ** (len(config["block_out_channels"]) - 1))

    def channels(self, config: Mapping[str, Any]) -> int:
        return int(config["latent_channels"])

    def encode(self, vae: Any, pictures: Tensor) -> Tensor:
        mean: Tensor = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist.mode().float()
        latents: Tensor = (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return latents

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        mean = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pictures: Tensor = vae.decode(mean.to(vae.dtype)).sample
        return pictures

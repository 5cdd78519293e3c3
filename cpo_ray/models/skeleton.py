"""A base at its real size without its weights: every model on the meta device, for the planner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from cpo_ray.config import Model
from cpo_ray.models.base import DTYPES


@dataclass(frozen=True)
class Configurations:
    """What the models of a published base are built from."""

    denoiser: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...]


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

    @property
    def factor(self) -> int:
        """Pixels of a picture's side per number of its latent's side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def tokens(self, encoder: int, prompts: int) -> Tensor:
        """Return (B, L) input ids of B prompts of the greatest length for one of the text encoders."""
        return torch.zeros(prompts, self.text_tokens[encoder], dtype=torch.long, device="meta")


def build_skeleton(
    model: Model,
    folder: Path | None,
    published: Configurations,
    denoiser: tuple[str, Any],
    text_encoders: Sequence[Any],
) -> Skeleton:
    """Build from the configurations in a pipeline's folder, or from the published ones without a folder.

    `denoiser` is its folder's name and class, `text_encoders` are the classes of the pipeline's encoders.
    """
    name, denoiser_class = denoiser
    if folder is None:
        configured, vae = published.denoiser, published.vae
        texts = [kind.config_class(**values) for kind, values in zip(text_encoders, published.text_encoders, strict=True)]
    else:
        configured = denoiser_class.load_config(folder, subfolder=name)
        vae = AutoencoderKL.load_config(folder, subfolder="vae")
        names = ["text_encoder", *(f"text_encoder_{number}" for number in range(2, len(text_encoders) + 1))]  # diffusers' names
        texts = [kind.config_class.from_pretrained(folder / text) for kind, text in zip(text_encoders, names, strict=True)]
    with made_in(torch.device("meta"), DTYPES[model.dtype]):
        made = denoiser_class.from_config(configured)
        encoders = tuple(kind(config) for kind, config in zip(text_encoders, texts, strict=True))
    with made_in(torch.device("meta"), torch.float32):
        autoencoder = AutoencoderKL.from_config(vae)
    for each in (made, autoencoder, *encoders):
        each.eval().requires_grad_(False)
    # T5 has no length of its own.
    lengths = tuple(int(getattr(config, "max_position_embeddings", model.flow.text_tokens)) for config in texts)
    return Skeleton(made, autoencoder, encoders, lengths)


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

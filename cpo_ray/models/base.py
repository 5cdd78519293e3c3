"""The Protocol that an architecture implements; everything that differs between SDXL and another family is behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from cpo_ray.config import Lora, Model

if TYPE_CHECKING:
    from cpo_ray.core.diffusion import DiffusionProcess
    from cpo_ray.models.skeleton import Skeleton

#: Named conditioning tensors, each with the batch as its first dimension; the names are the family's own.
Conditioning = dict[str, Tensor]

TOY_BASE = Path(__file__).parents[1] / "domains" / "toy" / "assets" / "base"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def base_source(model: Model) -> str:
    """Where the base is loaded from: the embedded folder, a local folder or a hub id."""
    return str(TOY_BASE) if model.base == "toy" else model.base


def local_base(model: Model) -> Path | None:
    """Where the base lies on this machine: its folder, or the hub's cache; None where it is in neither."""
    source = base_source(model)
    if Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(source):
        return None
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, "model_index.json", revision=model.revision)
    return Path(index).parent if isinstance(index, str) else None


@dataclass(frozen=True)
class PictureSize:
    """SDXL's micro-conditioning, (height, width) in pixels: size before resizing, crop's top left, size trained at."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


class Encoders(Protocol):
    """The frozen models around the denoiser: VAE and text encoders."""

    token_limit: int

    def place_text(self, device: torch.device) -> None:
        """Move the text encoders; they encode on the device that `load_encoders` was told, so bring them there before."""

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → scaled latents (B, C, h, w), float32; the posterior's mean, so that it is a function."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Texts → conditioning tensors (B, …); the empty text is the null condition ∅ exactly as the pipeline samples with it."""

    def micro_conditioning(self, sizes: Sequence[PictureSize]) -> Conditioning:
        """Per-sample conditioning besides the text, (B, …) float32; empty for families without any."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, start and end included, before any truncation."""


class Family(Protocol):
    """One architecture."""

    name: str
    denoiser: str
    """The denoiser's folder in a pipeline that diffusers saved."""
    denoiser_class: Any
    """The denoiser's class in diffusers."""

    def load_encoders(self, model: Model, device: torch.device, vae: Path | None = None) -> Encoders:
        """The VAE on `device` in float32, or the one in the folder `vae` in float16; the text encoders in main memory.

        Raises ConfigError for a `vae` whose latents have another scale than the base's.
        """

    def load_denoiser(self, model: Model, adapter: Path | None = None) -> nn.Module:
        """The denoiser alone on the CPU, frozen, in evaluation mode.

        `adapter` is an export of ours: a LoRA is merged into the weights, a whole denoiser takes their place.
        """

    def skeleton(self, model: Model, folder: Path | None = None) -> Skeleton:
        """The base's models without weights, as the pipeline in `folder` has them or, without one, the published base."""

    def largest_inputs(self, skeleton: Skeleton, model: Model, batch: int) -> tuple[Tensor, Tensor, Conditioning]:
        """Inputs of `predict` on the CPU for so many samples of the model's resolution, with texts as long as they may be."""

    def load_process(self, model: Model) -> DiffusionProcess:
        """The base's own noise schedule and prediction space."""

    def predict(self, denoiser: nn.Module, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward: (B, C, h, w) in the model's prediction space."""

    def add_lora(self, denoiser: nn.Module, lora: Lora, seed: int) -> list[str]:
        """Add a trainable adapter, initialised from the seed alone; returns the names of its parameters."""

    def checkpoint_gradients(self, denoiser: nn.Module) -> None:
        """Have every block compute its activations again in the backward pass instead of keeping them."""

    def compile_blocks(self, denoiser: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
        """Have the blocks that a denoiser repeats compiled at their first call, each kind once for all its repetitions."""

    def use_float8(self, denoiser: nn.Module) -> None:
        """Have the linear layers of those blocks compute in 8 bits; lossy, see `models.float8`."""

    def save_adapter(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        """Write the adapter in diffusers' format with its metadata (rank, alpha). `state` holds gathered weights under ZeRO-3."""

    def save_other_formats(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        """Write the same adapter as `kohya.safetensors` and `comfyui.safetensors`, under the names of the original code."""

    def save_denoiser(self, model: Model, state: dict[str, Tensor], folder: Path) -> None:
        """Write a whole trained denoiser, float32, below `folder` as it lies in a diffusers pipeline."""

    def load_pipeline(self, model: Model, adapter: Path | None = None) -> Any:
        """The whole diffusers pipeline for generation, with what `adapter` holds as in `load_denoiser`."""

"""The Protocol of a family: everything in which one architecture differs from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cpo_ray.config import Lora, Model
from cpo_ray.core.picture_size import PictureSize

if TYPE_CHECKING:
    from cpo_ray.core.diffusion import DiffusionProcess
    from cpo_ray.models.latents import LatentSpace
    from cpo_ray.models.skeleton import Configurations, Skeleton
    from cpo_ray.models.tiny import Widths

#: Named conditioning tensors, with the batch as first dimension. The family chooses the names.
Conditioning = dict[str, Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Encoders(Protocol):
    """The frozen models around the denoiser: VAE and text encoders."""

    token_limit: int

    def place_text(self, device: torch.device) -> None:
        """Move the text encoders. They encode on the device given to `load_encoders`, so bring them there before encoding."""

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Encode (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w), float32. Takes the posterior's mean, so the result is
        deterministic.
        """

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode texts to conditioning tensors (B, …). The empty text is the null condition ∅ exactly as the pipeline samples
        with it.
        """

    def micro_conditioning(self, sizes: Sequence[PictureSize]) -> Conditioning:
        """Return the per-sample conditioning besides the text, (B, …) float32; empty for families without any."""

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, start and end included, before any truncation."""


class Tokens(NamedTuple):
    """How a family counts the tokens of a text, start and end included, before any truncation, and the most that it takes."""

    count: Callable[[str], int]
    limit: int


class Family(Protocol):
    """One architecture."""

    name: str
    denoiser: str
    """Folder of the denoiser in a pipeline saved by diffusers."""
    denoiser_class: Any
    """Class of the denoiser in diffusers."""
    pipeline: str
    """The class that diffusers names in the model_index.json of a base."""
    pipeline_class: Any
    """The class that draws with it, which may add to diffusers' own."""
    licences: Mapping[str, str]
    """Hub id of a published base → its licence."""
    latents: LatentSpace
    """What the VAE makes of pictures."""
    published: Configurations
    """What a published base is built from, so that its needs are known without a download."""

    def tiny(self, widths: Widths) -> Configurations:
        """Return what a small base of the architecture is built from."""

    def random_pipeline(self, configurations: Configurations, corpus: Iterable[str]) -> Any:
        """Return a whole diffusers pipeline with random weights; its tokenizers know the words of the corpus."""

    def check_base(self, model: Model, folder: Path) -> Sequence[str]:
        """Open everything that is loaded from a base's folder, but for the weights' numbers, and return what to know about it.

        Raises ConfigError with the first reason that keeps it from being loaded, or from being trained rightly.
        """

    def check_adapter(self, model: Model, adapter: Path, folder: Path | None) -> str:
        """Read an adapter for the base in `folder`, or without one for the published base, and return what it is.

        Raises AdapterError as `load_denoiser` does.
        """

    def tokens(self, model: Model) -> Tokens:
        """Load the tokenizers alone. Raises ConfigError as `check_base` does."""

    def load_encoders(self, model: Model, device: torch.device, vae: Path | None = None) -> Encoders:
        """Load the VAE on `device`, in float32 or from the folder `vae` in float16, and the text encoders in main memory.

        Raises ConfigError if `vae` has another latent space than the base's.
        """

    def load_denoiser(self, model: Model, adapter: Path | None = None) -> nn.Module:
        """Load the denoiser alone on the CPU, frozen, in evaluation mode.

        `adapter` is a LoRA in any format that `models.adapters` reads, which is merged into the weights, or the folder of a whole
        denoiser of ours, which replaces them. Raises AdapterError for one that is not of this denoiser, or changes nothing.
        """

    def skeleton(self, model: Model, folder: Path | None = None) -> Skeleton:
        """Return the base's models without weights, configured as the pipeline in `folder` or, without one, as the published
        base.
        """

    def largest_inputs(self, skeleton: Skeleton, model: Model, batch: int) -> tuple[Tensor, Tensor, Conditioning]:
        """Return inputs of `predict` on the CPU for a number of samples at the model's resolution, with texts of the greatest
        length.
        """

    def load_process(self, model: Model) -> DiffusionProcess:
        """Return the base's own noise schedule and prediction space."""

    def predict(self, denoiser: nn.Module, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Run one forward: (B, C, h, w) in the model's prediction space."""

    def add_lora(self, denoiser: nn.Module, lora: Lora, seed: int) -> list[str]:
        """Add a trainable adapter, initialised from the seed alone, and return the names of its parameters."""

    def checkpoint_gradients(self, denoiser: nn.Module) -> None:
        """Make every block compute its activations again in the backward pass instead of keeping them."""

    def compile_blocks(self, denoiser: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the repeated blocks of a denoiser at their first call, each kind once for all its repetitions."""

    def use_float8(self, denoiser: nn.Module) -> None:
        """Make the linear layers of those blocks compute in 8 bits; lossy, see `models.float8`."""

    def save_adapter(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        """Write the adapter in diffusers' format with its metadata (rank, alpha). `state` holds gathered weights under ZeRO-3."""

    def save_other_formats(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        """Write the same adapter as `kohya.safetensors` and `comfyui.safetensors`, under the original code's names."""

    def save_denoiser(self, model: Model, state: dict[str, Tensor], folder: Path) -> None:
        """Write a whole trained denoiser in float32 below `folder`, as it lies in a diffusers pipeline."""

    def load_pipeline(self, model: Model, adapter: Path | None = None) -> Any:
        """Load the whole diffusers pipeline for generation, with `adapter` as in `load_denoiser`."""

"""The weights of a base's models and the cost of their calls, counted on the meta device at the sizes of a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cpo_ray.config import Lora, Model, Optimization
from cpo_ray.config.evaluation import ModelScorerSettings
from cpo_ray.data.buckets import Bucket, encoded_together
from cpo_ray.evaluation.scorers.base import ModelScorer
from cpo_ray.models import family
from cpo_ray.models.base import DTYPES
from cpo_ray.models.skeleton import Skeleton
from cpo_ray.preflight.counting import Count, OnMeta, count_forward, count_step


@dataclass(frozen=True)
class StepCost:
    """A training step of one micro-batch: shapes of the trained parameters, the number of frozen ones, and the count."""

    trained: tuple[tuple[int, ...], ...]
    frozen: int
    count: Count

    @property
    def numbers(self) -> int:
        """Number of trained parameters."""
        return sum(torch.Size(shape).numel() for shape in self.trained)


@lru_cache(maxsize=2)
def skeleton_of(model: Model, folder: Path | None) -> Skeleton:
    """Return the base's skeleton. It is shared, so callers that change one build their own."""
    return family(model).skeleton(model, folder)


@lru_cache(maxsize=64)
def step_cost(
    model: Model, folder: Path | None, parameters: str, lora: Lora, micro_batch: int, gradient_checkpointing: bool
) -> StepCost:
    """Count a step of one micro-batch, in the dtype that the engine computes in."""
    architecture, skeleton = family(model), family(model).skeleton(model, folder)
    denoiser, dtype = skeleton.denoiser, DTYPES[model.dtype]
    if parameters == "lora":
        architecture.add_lora(denoiser, lora, 0)
        for values in denoiser.parameters():
            values.data = values.data.to(dtype)
    else:
        denoiser.requires_grad_(True)
    denoiser.train()
    if gradient_checkpointing:
        architecture.checkpoint_gradients(denoiser)
    x_t, timestep, conditioning = architecture.largest_inputs(skeleton, model, micro_batch)
    on_meta = OnMeta(denoiser)

    def loss() -> Tensor:
        prediction = architecture.predict(on_meta, x_t.to(dtype), timestep, conditioning)
        return prediction.float().square().mean()

    trained = tuple(tuple(values.shape) for values in denoiser.parameters() if values.requires_grad)
    frozen = sum(values.numel() for values in denoiser.parameters() if not values.requires_grad)
    return StepCost(trained, frozen, count_step(loss, denoiser))


def training_cost(model: Model, folder: Path | None, optimization: Optimization, lora: Lora, micro_batch: int) -> StepCost:
    """Return `step_cost` for a section of the configuration."""
    return step_cost(model, folder, optimization.parameters, lora, micro_batch, optimization.gradient_checkpointing)


@lru_cache(maxsize=64)
def forward_cost(model: Model, folder: Path | None, batch: int) -> Count:
    """Count a forward of the denoiser on a batch."""
    architecture, skeleton = family(model), skeleton_of(model, folder)
    x_t, timestep, conditioning = architecture.largest_inputs(skeleton, model, batch)
    on_meta = OnMeta(skeleton.denoiser)
    x_t = x_t.to(DTYPES[model.dtype])
    return count_forward(lambda: architecture.predict(on_meta, x_t, timestep, conditioning), [skeleton.denoiser])


@lru_cache(maxsize=64)
def text_cost(model: Model, folder: Path | None, prompts: int) -> Count:
    """Count all text encoders, one after the other: the largest peak, and all operations."""
    skeleton = skeleton_of(model, folder)
    counts = [
        count_forward(partial(encoder, skeleton.tokens(number, prompts * model.text_chunks)), [encoder])
        for number, encoder in enumerate(skeleton.text_encoders)
    ]
    return Count(max(each.peak for each in counts), sum(each.flop for each in counts))


@lru_cache(maxsize=64)
def encode_cost(model: Model, folder: Path | None) -> tuple[Count, int]:
    """Count the VAE in float32 on the pictures that it encodes at a time; return the count and the number of pictures."""
    skeleton, pictures = skeleton_of(model, folder), encoded_together(Bucket(*[model.resolution] * 3))
    size = (pictures, 3, model.resolution, model.resolution)
    with torch.device("meta"):
        return count_forward(lambda: skeleton.latents.encode(skeleton.vae, torch.zeros(size)), [skeleton.vae]), pictures


@lru_cache(maxsize=64)
def decode_cost(model: Model, folder: Path | None, pictures: int) -> Count:
    """Count the VAE in float32, decoding so many pictures at once."""
    skeleton = skeleton_of(model, folder)
    size = (pictures, *skeleton.latent_shape(model.resolution))
    with torch.device("meta"):
        return count_forward(lambda: skeleton.latents.decode(skeleton.vae, torch.zeros(size)), [skeleton.vae])


@lru_cache(maxsize=64)
def reading_cost(scorer: type[ModelScorer], told: ModelScorerSettings, pictures: int) -> tuple[int, Count]:
    """Count the published model of a scorer in float32 on so many pictures; return its parameters and the count."""
    with torch.device("meta"):
        reader = scorer(told).published_reader().eval()
        pixels, tokens = torch.zeros(pictures, 3, reader.side, reader.side), reader.largest_tokens(pictures)
        tokens = {name: values.to("meta") for name, values in tokens.items()}
        return numbers([reader]), count_forward(lambda: reader(pixels, **tokens), [reader])


def numbers(modules: Iterable[nn.Module]) -> int:
    """Return the parameters of all modules."""
    return sum(values.numel() for module in modules for values in module.parameters())


def merged_numbers(denoiser: nn.Module, lora: Lora) -> int:
    """Return the number of weights that a merged adapter changes; the expert holds them twice."""
    return sum(
        layer.weight.numel()
        for path, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and path.endswith(lora.targets)
    )

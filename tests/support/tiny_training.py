"""A training small enough for tests: a base that diffusers wrote, and target shards of random tensors written by the store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cpo_ray.config import Lora, Model, Optimization
from cpo_ray.core.picture_size import PictureSize
from cpo_ray.core.plan import Item, Plan
from cpo_ray.core.randomness import counter_generator
from cpo_ray.models import family
from cpo_ray.models.base import Conditioning
from cpo_ray.models.tiny import Widths
from cpo_ray.objectives.cpo_stabilised import StabilisedSettings
from cpo_ray.targets.store import TargetStore
from cpo_ray.training.worker import TrainSpec

TEXT_WIDTH = 16
SHARD_SIZE = 4
IDS = [f"picture-{number}" for number in range(10)]


def write_base(folder: Path, name: str = "sdxl", channels: tuple[int, ...] = (32, 64)) -> Model:
    """A small base of a family. `channels` has a UNet's levels: one level has half of the modules, each of which costs DeepSpeed
    time.
    """
    model = Model(family=name, base=str(folder), resolution=32)
    configurations = family(model).tiny(Widths(denoiser=channels, text=TEXT_WIDTH, latent=4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        family(model).random_pipeline(configurations, ["red circle"]).save_pretrained(folder)
    return model


@lru_cache
def _told(model: Model) -> tuple[dict[str, tuple[int, ...]], Conditioning]:
    """The shapes of one text of five tokens, and what else the denoiser is told about a picture."""
    encoders = family(model).load_encoders(model, torch.device("cpu"))
    texts = {name: tuple(values.shape[1:]) for name, values in encoders.encode_prompts(["red circle"]).items()}
    five = {name: (5, *shape[1:]) if len(shape) == 2 else shape for name, shape in texts.items()}
    return five, encoders.micro_conditioning([PictureSize((32, 32), (0, 0), (32, 32))])


@lru_cache
def unpadded(model: Model) -> bool:
    """Return whether a text has a length of its own, as in families that hide padding from attention."""
    encoders = family(model).load_encoders(model, torch.device("cpu"))
    short, long = (encoders.encode_prompts([text])["prompt_embeds"].shape for text in ("circle", "red circle"))
    return short != long


def conditioning(model: Model, batch: int, generator: torch.Generator | None = None) -> Conditioning:
    """Random conditioning as the family's encoders name it; unpadded, the other texts are shorter than the first."""
    texts, micro = _told(model)
    made = {name: torch.randn(batch, *shape, generator=generator) for name, shape in texts.items()}
    if unpadded(model):
        for values in (values for values in made.values() if values.ndim == 3):
            values[1:, 3:] = 0
    return made | {name: values.repeat(batch, *[1] * (values.ndim - 1)) for name, values in micro.items()}


def make_spec(folder: Path, model: Model, *, optimization: dict[str, Any], steps: int = 4, **changes: Any) -> TrainSpec:
    """Steps of 6 samples, the last padded by 2; weights that move visibly in few steps."""
    plan = Plan(tuple(IDS), seed=1, global_batch=6, draws=2, total_items=6 * steps - 2)
    settings: dict[str, Any] = {"steps": steps, "global_batch": 6, "micro_batch": 2, "learning_rate": 1e-2} | optimization
    defaults: dict[str, Any] = {
        "run_id": "tiny",
        "output": folder / "output",
        "lora": Lora(rank=4, alpha=8),
        "objective": StabilisedSettings(name="cpo_s", beta=1.0),
        "targets": TargetStore(folder / "targets", "tiny"),
        "shard_size": SHARD_SIZE,
        "timeout_seconds": 60.0,
    }
    return TrainSpec(model=model, plan=plan, optimization=Optimization(**settings), **(defaults | changes))


def write_targets(
    spec: TrainSpec, first: int = 0, last: int | None = None, shapes: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """`shapes` has the (h, w) of each sample's latent where they are not all of 8 x 8."""
    for items in spec.plan.shards(spec.shard_size)[first:last]:
        shape = shapes[items[0].sample_id] if shapes else (8, 8)
        spec.targets.write(items, _tensors(items, spec.model, shape), {})


def _tensors(items: tuple[Item, ...], model: Model, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    latents = {
        "x_t": torch.float16, "target": torch.float16, "reference": torch.float32, "null_minus_reference": torch.float16,
        "negative_minus_null": torch.float16, "positive_minus_null": torch.float16, "positive_minus_all": torch.float16,
    }  # fmt: skip

    def normal(purpose: str, *shape: int) -> torch.Tensor:
        drawn = [counter_generator(0, *item, purpose).standard_normal(shape, dtype="float32") for item in items]
        return torch.stack([torch.from_numpy(values) for values in drawn])

    texts, micro = _told(model)
    if unpadded(model):  # of another length in every shard
        length = 3 + items[0].draw + len(items)
        texts = {name: (length, *shape[1:]) if len(shape) == 2 else shape for name, shape in texts.items()}
    uniform = torch.special.ndtr(normal("timestep").double())
    return {
        **{name: normal(name, 4, *shape).to(dtype) for name, dtype in latents.items()},
        "prompt_index": torch.arange(len(items)),
        "timestep": family(model).load_process(model).timestep(uniform),
        **{f"text.{name}": normal(name, *shape).half() for name, shape in texts.items()},
        **{f"micro.{name}": values.repeat(len(items), *[1] * (values.ndim - 1)) for name, values in micro.items()},
    }

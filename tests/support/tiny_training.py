"""A training small enough for tests: a base that diffusers wrote, and target shards of random tensors written by the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from cpo_ray.config import Lora, Model, Optimization
from cpo_ray.core.plan import Item, Plan
from cpo_ray.core.randomness import counter_generator
from cpo_ray.models.tiny import tiny_flux, tiny_sdxl
from cpo_ray.objectives.preference import PreferenceSettings
from cpo_ray.targets.store import TargetStore
from cpo_ray.training.worker import TrainSpec

TEXT_WIDTH = 16
SHARD_SIZE = 4
IDS = [f"picture-{number}" for number in range(10)]


def write_base(folder: Path, family: Literal["sdxl", "flux"] = "sdxl", channels: tuple[int, ...] = (32, 64)) -> Model:
    """`channels` of SDXL's levels: one level has half of the modules, each of which costs DeepSpeed time."""
    sizes: dict[str, Any] = {"vae_channels": (8, 16, 16), "text_width": TEXT_WIDTH, "latent_channels": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "flux":
            pipeline = tiny_flux(["red circle"], **sizes)
        else:
            pipeline = tiny_sdxl(["red circle"], channels=channels, sample_size=8, **sizes)
    pipeline.save_pretrained(folder)
    return Model(family=family, base=str(folder), resolution=32)


def conditioning(family: str, batch: int, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
    """Random conditioning as the family's encoders name it; FLUX's second text is shorter than its first."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    if family == "flux":
        text = normal(5, TEXT_WIDTH)
        text[1:, 3:] = 0
        return {"prompt_embeds": text, "pooled_prompt_embeds": normal(TEXT_WIDTH), "guidance": torch.ones(batch)}
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * batch)
    return {"prompt_embeds": normal(5, 2 * TEXT_WIDTH), "pooled_prompt_embeds": normal(TEXT_WIDTH), "time_ids": sizes}


def make_spec(folder: Path, model: Model, *, optimization: dict[str, Any], steps: int = 4, **changes: Any) -> TrainSpec:
    """Steps of 6 samples, the last padded by 2; weights that move visibly in few steps."""
    plan = Plan(tuple(IDS), seed=1, global_batch=6, draws=2, total_items=6 * steps - 2)
    settings: dict[str, Any] = {"steps": steps, "global_batch": 6, "micro_batch": 2, "learning_rate": 1e-2} | optimization
    defaults: dict[str, Any] = {
        "run_id": "tiny",
        "output": folder / "output",
        "lora": Lora(rank=4, alpha=8),
        "objective": PreferenceSettings(name="cpo_s", beta=1.0),
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
        spec.targets.write(items, _tensors(items, spec.model.family, shape), {})


def _tensors(items: tuple[Item, ...], family: str, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    latents = {
        "x_t": torch.float16, "target": torch.float16, "reference": torch.float32, "null_minus_reference": torch.float16,
        "negative_minus_null": torch.float16, "positive_minus_null": torch.float16, "positive_minus_all": torch.float16,
    }  # fmt: skip

    def normal(purpose: str, *shape: int) -> torch.Tensor:
        drawn = [counter_generator(0, *item, purpose).standard_normal(shape, dtype="float32") for item in items]
        return torch.stack([torch.from_numpy(values) for values in drawn])

    tensors = {
        **{name: normal(name, 4, *shape).to(dtype) for name, dtype in latents.items()},
        "prompt_index": torch.arange(len(items)),
    }
    if family == "flux":  # texts of another length in every shard
        length = 3 + items[0].draw + len(items)
        return tensors | {
            "timestep": torch.sigmoid(normal("timestep")),
            "text.prompt_embeds": normal("prompt", length, TEXT_WIDTH).half(),
            "text.pooled_prompt_embeds": normal("pooled", TEXT_WIDTH).half(),
            "micro.guidance": torch.ones(len(items)),
        }
    return tensors | {
        "timestep": (normal("timestep").abs() * 300).long().clamp(max=999),
        "text.prompt_embeds": normal("prompt", 5, 2 * TEXT_WIDTH).half(),
        "text.pooled_prompt_embeds": normal("pooled", TEXT_WIDTH).half(),
        "micro.time_ids": torch.tensor([32.0, 32, 0, 0, 32, 32]).expand(len(items), 6).contiguous(),
    }

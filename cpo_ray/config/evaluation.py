"""How pictures are drawn and measured."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from cpo_ray.config.section import Free, Section


class Evaluation(Section):
    scorers: tuple[str, ...] = ()
    """What pictures are scored by: names, or your own as "module:Class". Without any, what the domain scores its pictures by."""
    pictures: PositiveInt = 240
    """Pictures per model, from the same prompts and noise for all models."""
    inference_steps: PositiveInt = 20
    guidance_scale: float = Field(default=2.0, ge=1)
    batch: PositiveInt = 30
    actors: Free[PositiveInt] = 2
    cpus_per_actor: Free[PositiveFloat] = 1.0
    gpus_per_actor: Free[float] = Field(default=0.0, ge=0)
    samples: int = Field(default=8, ge=0)
    """Pictures drawn at each checkpoint of a training, from fixed prompts and noise, shown in MLflow; 0 for none."""
    cpus_per_sample: Free[PositiveFloat] = 1.0
    """CPUs for drawing them. If training leaves fewer, they are drawn when it ends."""
    seed: int = Field(default=90_000, ge=0)
    """Seed of the evaluation's noise, which training and tuning never use."""

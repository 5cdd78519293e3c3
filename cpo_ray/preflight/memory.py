"""Peak memory of each kind of process, part by part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cpo_ray.config import Config, Lora, Optimization
from cpo_ray.evaluation.scorers.base import ModelScorer, open_scorers
from cpo_ray.models import family
from cpo_ray.models.base import DTYPES
from cpo_ray.objectives import objective_of
from cpo_ray.preflight.counting import Count
from cpo_ray.preflight.engine_memory import engine_memory
from cpo_ray.preflight.model_costs import (
    decode_cost,
    encode_cost,
    forward_cost,
    merged_numbers,
    numbers,
    reading_cost,
    skeleton_of,
    text_cost,
    training_cost,
)

#: Bytes of a process on a GPU before it does anything: CUDA's context, its libraries' workspaces, NCCL's buffers. An estimate.
GPU_PROCESS = 1.2e9
#: Bytes of main memory of a process: Python, torch, diffusers and Ray. Measured: 0.7e9.
PROCESS = 0.7e9
#: Stands for the actors that score, whose settings are those of the section "evaluation".
SCORING = "scoring"


@dataclass(frozen=True)
class Need:
    """Bytes of one process by part, at its peak. `host` is main memory beside the GPU's.

    `gpus` is the share of a GPU (0: it computes in main memory), `processes` the number of such processes at the same time.
    """

    role: str
    parts: dict[str, float]
    gpus: float
    processes: int
    host: float = 0.0

    @property
    def bytes(self) -> float:
        return sum(self.parts.values())

    @property
    def main_bytes(self) -> float:
        """Main memory of all of them."""
        return self.processes * (PROCESS + (self.host if self.gpus else self.bytes + self.host))

    def __str__(self) -> str:
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts if size >= 0.05e9) or "next to nothing"


def trainer_need(config: Config, folder: Path | None, role: str, optimization: Optimization, lora: Lora, views: int = 1) -> Need:
    """Return the need of a training worker: the denoiser, DeepSpeed's copies, and the activations of a micro-batch, in which
    every sample has so many views.
    """
    size = DTYPES[config.model.dtype].itemsize
    cost = training_cost(config.model, folder, optimization, lora, views * micro_batch(config, optimization))
    accumulation = math.ceil(optimization.global_batch / (optimization.workers * micro_batch(config, optimization)))
    engine = engine_memory(optimization, cost.trained, cost.frozen, size, optimization.workers, accumulation)
    working = (
        {"activations": cost.count.peak, "buffers": engine.buffers + engine.passing}
        if cost.count.peak + engine.passing >= engine.step
        else {"the update's float32 gradients": engine.step, "buffers": engine.buffers}
    )
    every = cost.frozen + cost.numbers
    # Each worker reads the weights into main memory; the first one writes and checks the result in float32.
    exported = 4 * (2 * every if optimization.parameters == "full" else every)
    parts = {
        "weights": engine.weights,
        "gradients": engine.gradients,
        "optimizer": engine.optimizer,
        "moving average": engine.average,
        **working,
    }
    on_gpu = optimization.gpus_per_worker > 0
    host = engine.host + (max(size * every, exported / optimization.workers) if on_gpu else 0)
    return Need(role, _on(parts, on_gpu), optimization.gpus_per_worker, optimization.workers, host)


def micro_batch(config: Config, optimization: Optimization) -> int:
    """Return the samples of a worker's forward: at most its share of a step, and of pictures of one size."""
    together = config.data.pictures.together if config.data.pictures.buckets == "aspect" else optimization.global_batch
    return min(optimization.micro_batch, math.ceil(optimization.global_batch / optimization.workers), together)


def expert_need(config: Config, folder: Path | None) -> Need:
    """Return the need of an actor that computes targets: encoders, the reference, θ1's own weights, and the
    largest of its calls.
    """
    model, targets = config.model, config.targets
    skeleton, size = skeleton_of(model, folder), DTYPES[model.dtype].itemsize
    on_gpu = targets.gpus_per_actor > 0
    whole = numbers([skeleton.denoiser])
    own = whole if _whole_expert(config) else merged_numbers(skeleton.denoiser, config.expert.lora)
    text = size * numbers(skeleton.text_encoders)
    encoded, _ = encode_cost(model, folder)
    vae_share = 0.5 if targets.vae else 1  # float16 instead of float32
    calls = {
        "activations of a forward": forward_cost(model, folder, targets.forward_batch or 4 * targets.shard_size).peak,
        "activations of the VAE": vae_share * encoded.peak,
        # The conditions of a shard come as one batch. Where encoders are there only for it, they are part of the call.
        "text encoders at work": text_cost(model, folder, 4 * targets.shard_size).peak
        + (text if targets.offload_text_encoders else 0),
    }
    call = max(calls, key=lambda name: calls[name])
    parts = {
        "reference": size * whole,
        "expert's own weights": size * own,
        "text encoders": 0 if targets.offload_text_encoders else text,
        "VAE": vae_share * 4 * numbers([skeleton.vae]),
        call: calls[call],
    }
    host = (2 * size * whole + text) if on_gpu else 0  # both are read before what they share is seen
    return Need("an actor that computes targets", _on(parts, on_gpu), targets.gpus_per_actor, targets.max_actors, host)


def _whole_expert(config: Config) -> bool:
    """Return whether the expert is a whole denoiser rather than the base with an adapter."""
    if config.expert.adapter is None:
        return config.expert.optimization.parameters == "full"
    return (config.expert.adapter / family(config.model).denoiser).is_dir()


def drawing_need(config: Config, folder: Path | None) -> Need:
    """Return the need of an actor that draws pictures for the evaluation: a whole pipeline."""
    model, evaluation = config.model, config.evaluation
    skeleton, size = skeleton_of(model, folder), DTYPES[model.dtype].itemsize
    on_gpu = evaluation.gpus_per_actor > 0
    models = (skeleton.denoiser, *skeleton.text_encoders, skeleton.vae)
    calls = {
        "activations of a forward": forward_cost(model, folder, 2 * evaluation.batch).peak,  # with and without the text
        "activations of the VAE": size / 4 * decode_cost(model, folder, evaluation.batch).peak,
    }
    call = max(calls, key=lambda name: calls[name])
    parts = {"pipeline": float(size * numbers(models)), call: calls[call]}
    host = size * numbers(models) if on_gpu else 0
    return Need("an actor that draws pictures", _on(parts, on_gpu), evaluation.gpus_per_actor, evaluation.actors, host)


def scoring_need(config: Config, folder: Path | None) -> Need:
    """Return the need of an actor that scores pictures for the evaluation: the largest of the scorers' models, in float32."""
    evaluation = config.evaluation
    needs = [(4.0 * count, cost.peak, name) for name, count, cost in _reading_costs(config)]
    weights, peak, name = max(needs, key=lambda need: need[0] + need[1])
    on_gpu = evaluation.gpus_per_actor > 0
    parts = {f"{name}'s weights": weights, "activations of a forward": float(peak)}
    host = weights if on_gpu else 0
    return Need("an actor that scores pictures", _on(parts, on_gpu), evaluation.gpus_per_actor, evaluation.actors, host)


def measuring_need(config: Config, folder: Path | None) -> Need:
    """Return the need of a sweep's actor, which draws and keeps the models of all scorers beside the pipeline."""
    drawing, costs = drawing_need(config, folder), list(_reading_costs(config))
    if not costs:
        return drawing
    weights = 4.0 * sum(count for _, count, _ in costs)
    host = drawing.host + (weights if drawing.gpus else 0)
    return replace(drawing, role="an actor that draws and scores", parts={**drawing.parts, "scorers": weights}, host=host)


def _reading_costs(config: Config) -> Iterator[tuple[str, int, Count]]:
    """Yield the name, the parameters and the count of each scorer with a model."""
    for scorer in open_scorers(config):
        if isinstance(scorer, ModelScorer):
            yield scorer.name, *reading_cost(type(scorer), scorer.told, config.evaluation.batch)


def _on(parts: Mapping[str, float], on_gpu: bool) -> dict[str, float]:
    return {**parts} | ({"CUDA": GPU_PROCESS} if on_gpu else {})


Role = Callable[[Config, Path | None], Need]


def _expert_training(config: Config, folder: Path | None) -> Need:
    return trainer_need(config, folder, "a worker of stage 1", config.expert.optimization, config.expert.lora)


def _alignment(config: Config, folder: Path | None) -> Need:
    settings = config.preference
    views = max(len(objective_of(objective).views) for objective in settings.trainings.values())
    return trainer_need(config, folder, "a worker of stage 2", settings.optimization, settings.lora, views)


def roles(config: Config, *, sweep: bool = False) -> Iterator[tuple[str, Role]]:
    """Return the kinds of processes of a run or a sweep, each under the section that decides its need.

    The actors that score have that of the actors that draw, after which they come.
    """
    if config.expert.adapter is None:
        yield "expert.optimization", _expert_training
    yield "targets", expert_need
    yield "preference.optimization", _alignment
    yield "evaluation", measuring_need if sweep else drawing_need
    if not sweep and any(isinstance(scorer, ModelScorer) for scorer in open_scorers(config)):
        yield SCORING, scoring_need

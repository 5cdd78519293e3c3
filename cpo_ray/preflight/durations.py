"""How long the stages take, from the operations they consist of and the rate that the hardware is taken to sustain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cpo_ray.config import Config, Lora, Optimization
from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.core.progress import in_words
from cpo_ray.objectives import objective_of
from cpo_ray.preflight.memory import micro_batch
from cpo_ray.preflight.model_costs import decode_cost, encode_cost, forward_cost, text_cost, training_cost
from cpo_ray.preflight.trials import Trials

#: Text conditions and forwards per sample of expert targets: y for the reference, four conditions for θ1.
_CONDITIONS = 5


@dataclass(frozen=True)
class Stage:
    """Optimizer steps of a training, its seconds and those of its targets, each on what it is given."""

    name: str
    steps: int
    targets: float
    training: float
    together: bool

    @property
    def seconds(self) -> float:
        return max(self.targets, self.training) if self.together else self.targets + self.training

    def __str__(self) -> str:
        if not self.targets:
            return f"{self.name} {in_words(self.training)}"
        parts = f"targets {in_words(self.targets)}, training {in_words(self.training)}"
        return f"{self.name} {in_words(self.seconds)} ({parts}{', at the same time' if self.together else ''})"


@dataclass(frozen=True)
class Work:
    """Samples of a training: how many are trained, and of how many distinct ones the targets are computed."""

    trained: int
    distinct: int


def work(optimization: Optimization, pictures: int, draws: int | None) -> Work:
    """Return the work of a training on `pictures` pictures; without `draws` every visit of a picture has its own noise."""
    if optimization.steps is not None:
        trained = optimization.steps * optimization.global_batch
    else:
        trained = max(1, round((optimization.epochs or 0) * pictures))
    return Work(trained, trained if draws is None else min(trained, draws * pictures))


def steps_of(optimization: Optimization, pictures: int) -> int:
    """Return the optimizer steps of a training on `pictures` pictures; 0 where they follow from pictures that are not there."""
    if optimization.steps is None and not pictures:
        return 0
    return math.ceil(work(optimization, pictures, None).trained / optimization.global_batch)


def expert_flop(config: Config, folder: Path | None) -> float:
    """Operations of one sample of expert targets: four forwards of θ1, one of the reference, the picture and its texts."""
    forward = forward_cost(config.model, folder, 1).flop
    return _CONDITIONS * forward + supervised_flop(config, folder) + (_CONDITIONS - 1) * text_cost(config.model, folder, 1).flop


def supervised_flop(config: Config, folder: Path | None) -> float:
    """Operations of one sample of supervised targets: the picture and one text."""
    encoded, pictures = encode_cost(config.model, folder)
    return encoded.flop / pictures + text_cost(config.model, folder, 1).flop


def reference_flop(config: Config, folder: Path | None, pictures: int) -> float:
    """Operations of one sample of so many pictures under one text, each with a forward of the reference."""
    text = text_cost(config.model, folder, 1).flop
    return pictures * (supervised_flop(config, folder) - text + forward_cost(config.model, folder, 1).flop) + text


def training_flop(config: Config, folder: Path | None, optimization: Optimization, lora: Lora) -> float:
    """Operations of one trained sample, forward and backward."""
    size = micro_batch(config, optimization)
    return training_cost(config.model, folder, optimization, lora, size).count.flop / size


def drawing_flop(config: Config, folder: Path | None) -> float:
    """Operations of one picture: every step twice, with and without the text, and the decoder."""
    forward, steps = forward_cost(config.model, folder, 1).flop, config.evaluation.inference_steps
    return 2 * steps * forward + decode_cost(config.model, folder, 1).flop


def target_flop(config: Config, folder: Path | None, objective: ObjectiveSettings, pictures: int) -> float:
    """Operations of all targets of one training of stage 2, on so many pictures at most."""
    optimization, found = config.preference.optimization, objective_of(objective)
    if found.supervised:
        return work(optimization, pictures, None).distinct * supervised_flop(config, folder)
    each = expert_flop(config, folder) if found.calls_expert else reference_flop(config, folder, found.pictures)
    return work(optimization, pictures, config.targets.draws).distinct * each


def stages(config: Config, folder: Path | None, pictures: int, rate: float, trials: Trials | None = None) -> list[Stage]:
    """Every training of a run, or of a sweep, in its order, on GPUs (or CPUs where there are none) of so many FLOP/s each.

    Objectives that read the same targets find what the first of them had computed, and so do trials.
    """
    expert, preference, targets = config.expert, config.preference, config.targets
    producing = _power(targets.max_actors, targets.cpus_per_actor, targets.gpus_per_actor, rate)

    def training(name: str, optimization: Optimization, lora: Lora, producible: float, views: int = 1) -> Stage:
        power = _training_power(optimization, rate)
        flop = views * work(optimization, pictures, None).trained * training_flop(config, folder, optimization, lora)
        return Stage(name, steps_of(optimization, pictures), producible / producing, flop / power, targets.overlap)

    found = []
    if expert.adapter is None:
        count = work(expert.optimization, pictures, None).distinct
        found.append(training("stage 1", expert.optimization, expert.lora, count * supervised_flop(config, folder)))
    there: set[tuple[bool, bool, int | None]] = set()
    for name, objective in preference.trainings.items():
        chosen = objective_of(objective)
        read = chosen.supervised, chosen.calls_expert, objective.most_negatives
        flop = 0.0 if read in there else target_flop(config, folder, objective, pictures)
        called = f"baseline {name}" if there else "stage 2"
        stage = training(called, preference.optimization, preference.lora, flop, len(chosen.views))
        if trials:
            return [*found, _trials(config, folder, rate, stage, trials)]
        found.append(stage)
        there.add(read)
    return found


def evaluation_seconds(config: Config, folder: Path | None, rate: float) -> float:
    """Drawing the pictures of the base, the expert and all that is trained."""
    evaluation, drawn = config.evaluation, 2 + len(config.preference.trainings)
    return drawn * evaluation.pictures * drawing_flop(config, folder) / _drawing_power(config, rate)


def _trials(config: Config, folder: Path | None, rate: float, one: Stage, trials: Trials) -> Stage:
    """All trials when one takes as long as `one`, and beside them the pictures that they are judged by.

    Drawing on parts of a GPU, or on CPUs, takes from the trainings; on GPUs of its own it does not.
    """
    power, own = trials.at_once * _training_power(config.preference.optimization, rate), _drawing_power(config, rate)
    training = math.ceil(trials.count / trials.at_once) * one.training
    drawing = trials.drawn * drawing_flop(config, folder) / own
    apart = config.evaluation.gpus_per_actor >= 1
    seconds = max(training, drawing) if apart else (training * power + drawing * own) / (power + own)
    return Stage(f"{trials.count} trials", trials.count * one.steps, one.targets, seconds, together=False)


def ideal_ratio(config: Config, folder: Path | None, pictures: int) -> float:
    """GPUs (or CPUs) that compute targets of stage 2 for each one that trains, so that neither waits for the other."""
    optimization, lora = config.preference.optimization, config.preference.lora
    training = work(optimization, pictures, None).trained * training_flop(config, folder, optimization, lora)
    return target_flop(config, folder, config.preference.objective, pictures) / training


def _training_power(optimization: Optimization, rate: float) -> float:
    return _power(optimization.workers, optimization.cpus_per_worker, optimization.gpus_per_worker, rate)


def _drawing_power(config: Config, rate: float) -> float:
    return _power(config.evaluation.actors, config.evaluation.cpus_per_actor, config.evaluation.gpus_per_actor, rate)


def _power(processes: int, cpus: float, gpus: float, rate: float) -> float:
    """FLOP/s of a pool."""
    return processes * (gpus or cpus) * rate


def total(found: list[Stage], evaluation: float) -> float:
    """Seconds of a whole run."""
    return math.fsum(stage.seconds for stage in found) + evaluation

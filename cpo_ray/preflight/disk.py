"""What a run writes: target shards, checkpoints and exports."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cpo_ray.config import Config, Lora, Optimization
from cpo_ray.core.schema import target_row_bytes
from cpo_ray.models.skeleton import Skeleton
from cpo_ray.preflight.durations import work
from cpo_ray.preflight.engine_memory import checkpoint_bytes
from cpo_ray.preflight.memory import micro_batch
from cpo_ray.preflight.model_costs import StepCost, skeleton_of, training_cost
from cpo_ray.preflight.trials import Trials

#: Checkpoints of a training that are there at the same time: those that are kept, and the next one while it is written.
CHECKPOINTS = 3
#: Files that an adapter is exported to: diffusers', kohya's and ComfyUI's.
FORMATS = 3


class RowSize(NamedTuple):
    """Numbers in one sample's latent, and in the conditions of its prompt at most."""

    latent: int
    text: int


def row_of(config: Config, folder: Path | None) -> RowSize:
    """Of the configured resolution; every prompt in a shard could be a new one, and as long as may be."""
    skeleton = skeleton_of(config.model, folder)
    side = config.model.resolution // skeleton.factor
    return RowSize(skeleton.vae.config.latent_channels * side * side, _text_numbers(skeleton))


def _text_numbers(skeleton: Skeleton) -> int:
    """Numbers that the encoders give for one prompt: a row for each token, and a pooled one."""
    widths = [getattr(encoder.config, "d_model", None) or encoder.config.hidden_size for encoder in skeleton.text_encoders]
    return sum(width * (tokens + 1) for width, tokens in zip(widths, skeleton.text_tokens, strict=True))


def target_bytes(config: Config, folder: Path | None, pictures: int) -> int:
    """All target shards of stage 2, at most."""
    amount = work(config.preference.optimization, pictures, config.targets.draws)
    return amount.distinct * target_row_bytes(*row_of(config, folder))


class Written(NamedTuple):
    """Trainings of the same size: how many leave an export, and of how many there are checkpoints at the same time."""

    optimization: Optimization
    lora: Lora
    exported: int
    checkpointed: int


def training_bytes(config: Config, folder: Path | None, trials: Trials | None = None) -> tuple[int, int]:
    """Checkpoints and exports of all trainings of a run, or of a sweep with these trials."""
    checkpoints = exports = 0
    for optimization, lora, exported, checkpointed in trainings(config, trials):
        cost = training_cost(config.model, folder, optimization, lora, micro_batch(config, optimization))
        checkpoints += checkpointed * CHECKPOINTS * checkpoint_bytes(optimization, cost.trained)
        exports += exported * _export_bytes(optimization, cost)
    return checkpoints, exports


def _export_bytes(optimization: Optimization, cost: StepCost) -> int:
    return 4 * cost.numbers * (1 if optimization.parameters == "full" else FORMATS)


def trainings(config: Config, trials: Trials | None) -> Iterator[Written]:
    """Those of stage 1, and of stage 2 and the baselines, whose checkpoints stay, or of the trials."""
    expert, preference = config.expert, config.preference
    if expert.adapter is None:
        yield Written(expert.optimization, expert.lora, 1, 1)
    objectives = len({preference.objective, *preference.baselines})
    exported, checkpointed = (trials.count, trials.checkpointed) if trials else (objectives, objectives)
    yield Written(preference.optimization, preference.lora, exported, checkpointed)


def free_bytes(folder: Path) -> int:
    """What is free where a folder is or will be."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())

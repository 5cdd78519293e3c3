"""Disk space of a run: target shards, checkpoints and exports."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cpo_ray.config import Config, Lora, Optimization
from cpo_ray.core.schema import target_row_bytes
from cpo_ray.data.buckets import Bucket
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.models import family
from cpo_ray.models.bases.source import local_base
from cpo_ray.objectives import objective_of
from cpo_ray.preflight.durations import work
from cpo_ray.preflight.engine_memory import checkpoint_bytes
from cpo_ray.preflight.memory import micro_batch
from cpo_ray.preflight.model_costs import StepCost, skeleton_of, training_cost
from cpo_ray.preflight.trials import Trials
from cpo_ray.recipes import Usable, alignment, expert_training, usable_pictures
from cpo_ray.targets.expert import ExpertSpec, target_store
from cpo_ray.targets.store import Items

#: The pictures of a data set with their buckets → the shards that all trials of a sweep read.
SharedShards = Callable[[Usable], Sequence[Items]]

#: Checkpoints of a training that are there at the same time: those that are kept, and the next one while it is written.
CHECKPOINTS = 3
#: Files that an adapter is exported to: diffusers', kohya's and ComfyUI's.
FORMATS = 3


class RowSize(NamedTuple):
    """Numbers in one sample's latent, and at most in the conditions of its prompt."""

    latent: int
    text: int


def row_of(config: Config, folder: Path | None) -> RowSize:
    """Return the row size at the configured resolution, with a new prompt of the greatest length in every row."""
    skeleton = skeleton_of(config.model, folder)
    _, _, conditions = family(config.model).largest_inputs(skeleton, config.model, 1)
    latent = math.prod(skeleton.latent_shape(config.model.resolution))
    return RowSize(latent, sum(values.numel() for values in conditions.values()))


def target_bytes(config: Config, folder: Path | None, pictures: int) -> int:
    """Return the size of all target shards of stage 2, at most."""
    amount = work(config.preference.optimization, pictures, config.targets.draws)
    return amount.distinct * target_row_bytes(*row_of(config, folder))


class Written(NamedTuple):
    """Trainings of one size: how many leave an export, and how many have checkpoints at the same time."""

    optimization: Optimization
    lora: Lora
    exported: int
    checkpointed: int


def training_bytes(config: Config, folder: Path | None, trials: Trials | None = None) -> tuple[int, int]:
    """Return the size of checkpoints and exports of all trainings of a run, or of a sweep with these trials."""
    checkpoints = exports = 0
    for optimization, lora, exported, checkpointed in trainings(config, trials):
        cost = training_cost(config.model, folder, optimization, lora, micro_batch(config, optimization))
        checkpoints += checkpointed * CHECKPOINTS * checkpoint_bytes(optimization, cost.trained)
        exports += exported * _export_bytes(optimization, cost)
    return checkpoints, exports


def _export_bytes(optimization: Optimization, cost: StepCost) -> int:
    return 4 * cost.numbers * (1 if optimization.parameters == "full" else FORMATS)


def trainings(config: Config, trials: Trials | None) -> Iterator[Written]:
    """Return the trainings of stage 1, and of stage 2 with its baselines, whose checkpoints stay, or of the trials."""
    expert, preference = config.expert, config.preference
    if expert.adapter is None:
        yield Written(expert.optimization, expert.lora, 1, 1)
    objectives = len(preference.trainings)
    exported, checkpointed = (trials.count, trials.checkpointed) if trials else (objectives, objectives)
    yield Written(preference.optimization, preference.lora, exported, checkpointed)


@dataclass(frozen=True)
class StageNeed:
    """The target shards that one stage of a run reads. `there` counts existing ones; None if that cannot be known yet."""

    stage: str
    samples: int
    shards: int
    there: int | None
    bytes: int

    def sentence(self) -> str:
        """One line for people."""
        there = "" if self.there is None else f", {self.there} of them there already"
        return f"{self.stage}: {self.samples:,} samples in {self.shards} shards, {self.bytes / 1e9:.2f} GB at most{there}"


def stage_needs(config: Config, shared_by_trials: SharedShards | None = None) -> list[StageNeed]:
    """Return the target shards of each stage of a run; of a sweep, whose trials share theirs, with `shared_by_trials`.

    Raises DataError if there are no pictures. Those that a domain draws need not exist yet.
    """
    pictures, drawn = _pictures(config)
    learned, size = pictures.training(config.data.proportion), config.targets.shard_size
    adapter = config.expert.adapter or config.folder / "expert" / "adapter"
    found = []
    if config.expert.adapter is None:
        first = expert_training(config, learned)
        found.append(_stage_need(config, "stage 1", first.plan.shards(size), first.frozen, drawn))
    objective = config.preference.objective
    compared = objective_of(objective).pictures > 1
    # Which pictures win a pair is known only from their labels; at most each of them does.
    second = alignment(config, objective, learned, adapter, {name: name for name in learned} if compared else None)
    shards = second.plan.shards(size) if shared_by_trials is None else shared_by_trials(pictures)
    known = drawn and not compared and (second.frozen.adapter is None or adapter.exists())
    stage = "stage 2" if shared_by_trials is None else "all trials"
    return [*found, _stage_need(config, stage, shards, second.frozen, known)]


def _stage_need(config: Config, stage: str, shards: Sequence[Items], frozen: ExpertSpec, known: bool) -> StageNeed:
    """Return one stage's need. `known` says whether the pictures and the expert exist, which decide the shards' address."""
    samples, row = sum(map(len, shards)), row_of(config, local_base(config.model))
    there = len(shards) - len(target_store(frozen, config.targets.folder).missing(shards)) if known else None
    return StageNeed(stage, samples, len(shards), there, samples * _row_bytes(frozen, row))


def _row_bytes(frozen: ExpertSpec, row: RowSize) -> int:
    """Return the bytes of one sample of a training's targets."""
    if frozen.kind == "expert":
        return target_row_bytes(*row)
    # x_t and the truth in float16, and the reference's output in float32.
    each = (4 if frozen.kind == "supervised" else 8) * row.latent
    return (1 if frozen.losers is None else 2) * each + 2 * row.text


def _pictures(config: Config) -> tuple[Usable, bool]:
    """Return the pictures of the data set and whether it exists. Before a domain has drawn it, others stand for them."""
    try:
        return usable_pictures(config, AnnotatedDataset.open(config.data.folder)), True
    except DataError:
        if not config.domain.pictures:
            raise
        square = Bucket(*[config.model.resolution] * 3)
        return Usable({f"{number:09d}": square for number in range(config.domain.pictures)}), False


def free_bytes(folder: Path) -> int:
    """Return the free space where a folder is or will be."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())

"""Turn a configuration into its trainings: which pictures, in which order, and what the frozen models compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cpo_ray.config import ConditionMixture, Config, Lora, Optimization
from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.core.plan import Plan
from cpo_ray.core.splits import Split, in_training, split_of
from cpo_ray.data.buckets import Bucket, assign
from cpo_ray.data.pairs import Losers
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.objectives import objective_of
from cpo_ray.objectives.sft import SupervisedSettings
from cpo_ray.targets.expert import ExpertSpec
from cpo_ray.targets.reader import check_views
from cpo_ray.targets.store import Kind


class NoPicturesError(DataError):
    """A training is left without pictures; the message says which data it looked at and what to change."""


@dataclass(frozen=True)
class Usable:
    """The pictures of a data set that have a bucket, by id, and the splits that their source has put some of them into."""

    buckets: Mapping[str, Bucket]
    published: Mapping[str, Split] = field(default_factory=dict)

    def training(self, proportion: float) -> dict[str, Bucket]:
        """Return the training split. A smaller `data.proportion` keeps a nested part of it (paper, Table 3)."""
        buckets = self.buckets.items()
        return {name: bucket for name, bucket in buckets if in_training(name, proportion, self.published.get(name))}

    def validation(self) -> list[str]:
        """Return the ids of the validation split."""
        return [name for name in self.buckets if (self.published.get(name) or split_of(name)) == "validation"]


def usable_pictures(config: Config, dataset: AnnotatedDataset) -> Usable:
    """Return the pictures of a data set without those that are too small for any bucket."""
    sizes = {name: dataset.size(name) for name in dataset.ids}
    return Usable(assign(sizes, config.model.resolution, config.data.pictures), dataset.published)


def training_plan(config: Config, pictures: Mapping[str, Bucket], optimization: Optimization, draws: int | None = None) -> Plan:
    """Return the order of training. Without `draws` every visit of a picture has its own noise.

    Raises NoPicturesError if there are none.
    """
    if not pictures:
        raise NoPicturesError(
            f"{config.data.folder} has no picture for this training; add (large enough) pictures, or raise data.proportion "
            "or the objective's most_negatives"
        )
    batch, most = optimization.global_batch, config.data.pictures.together
    together = max(size for size in range(1, min(most, batch) + 1) if batch % size == 0)
    seed, of_each = config.run.seed, draws or 1
    if optimization.steps is not None:
        plan = Plan.of_steps(pictures, seed, batch, of_each, optimization.steps, together)
    else:
        plan = Plan.of_epochs(pictures, seed, batch, of_each, optimization.epochs or 0, together)
    return plan if draws else replace(plan, draws=math.ceil(plan.total_items / len(pictures)))


@dataclass(frozen=True)
class Training:
    """One training: its name, objective, optimization, order and targets. `seed` decides the first weights of its adapter."""

    name: str
    objective: ObjectiveSettings
    optimization: Optimization
    lora: Lora
    plan: Plan
    frozen: ExpertSpec
    seed: int


def expert_training(config: Config, pictures: Mapping[str, Bucket]) -> Training:
    """Return stage 1 (paper, 5.1): the denoising loss on pictures whose text names their attributes, good and bad."""
    settings = config.expert
    plan = training_plan(config, pictures, settings.optimization)
    objective, frozen = SupervisedSettings(name="sft", most_negatives=None), supervised_spec(config, settings.conditions)
    return Training("expert", objective, settings.optimization, settings.lora, plan, frozen, config.run.seed)


def alignment(
    config: Config,
    objective: ObjectiveSettings,
    pictures: Mapping[str, Bucket],
    adapter: Path,
    losers: Losers | None = None,
) -> Training:
    """Return stage 2 (paper, 5.2) or a baseline: the objective, told y alone; `adapter` is the expert's.

    `losers` are those of an objective that compares two pictures, which trains on the pictures that win a pair.
    Raises TargetStoreError for an objective with views that target shards do not hold, and NoPicturesError if there is nothing to
    train on.
    """
    found, settings = objective_of(objective), config.preference
    check_views(found)
    if losers is not None:
        pictures = {name: bucket for name, bucket in pictures.items() if name in losers}
        if not pictures:
            raise NoPicturesError(
                f"no picture of {config.data.folder} is better than another of the same prompt, and {found.name!r} learns from "
                "such pairs; label several pictures of a prompt, or choose another objective"
            )
    plan = alignment_plan(config, objective, pictures)
    if found.supervised:
        frozen = supervised_spec(config)
    elif found.calls_expert:
        frozen = expert_spec(config, adapter)
    else:
        frozen = _frozen_spec(config, "reference", losers=losers)
    return Training(found.name, objective, settings.optimization, settings.lora, plan, frozen, config.training_seed)


def alignment_plan(config: Config, objective: ObjectiveSettings, pictures: Mapping[str, Bucket]) -> Plan:
    """Return the order of a training of stage 2. If no frozen model is called, each visit of a picture may have its own noise for
    free.
    """
    draws = None if objective_of(objective).supervised else config.targets.draws
    plan = training_plan(config, pictures, config.preference.optimization, draws)
    return plan if config.training_seed == config.run.seed else replace(plan, order=config.training_seed)


def supervised_spec(config: Config, mixture: ConditionMixture | None = None) -> ExpertSpec:
    """Return the targets of the denoising loss: with a mixture of conditions for stage 1, or told y alone for a baseline."""
    return _frozen_spec(config, "supervised", mixture=mixture)


def expert_spec(config: Config, adapter: Path) -> ExpertSpec:
    """Return the targets of stage 2: the outputs of θ1, which is the base with `adapter`, and of the reference."""
    return _frozen_spec(config, "expert", adapter=adapter, compile=config.targets.compile, float8=config.targets.float8)


def _frozen_spec(config: Config, kind: Kind, **more: Any) -> ExpertSpec:
    targets = config.targets
    return ExpertSpec(
        kind,
        config.model,
        config.data.folder,
        config.data.hierarchy,
        config.run.seed,
        forward_batch=targets.forward_batch,
        vae=targets.vae,
        offload_text_encoders=targets.offload_text_encoders,
        pictures=config.data.pictures,
        **more,
    )

"""Decide which targets the trials of a sweep share; a pure function."""

from __future__ import annotations

from collections import Counter

from cpo_ray.config import Config
from cpo_ray.core.plan import Plan
from cpo_ray.recipes import Usable, alignment_plan, training_plan
from cpo_ray.sweep.space import SearchSpace, point_config
from cpo_ray.targets.store import Items


def sweep_items(config: Config, pictures: Usable) -> tuple[tuple[Items, ...], Plan]:
    """Return the shards with every item of every trial, and the plan of the held-out items, in which each
    step is of one bucket.

    `pictures` are those of the whole data set. If trials take a part of the pictures, the shards hold all
    draws of the largest share, since a smaller part visits its pictures more often. The same holds if batches have several sizes,
    since these fill with pictures of one bucket in different ways. Otherwise they hold what the longest trial reads, and shorter
    trials read a part of it.
    """
    assert config.sweep is not None
    space = SearchSpace(config)
    largest = point_config(config, space.largest()[0])
    used = pictures.training(largest.data.proportion)
    objectives = [point_config(config, point).preference.objective for point in space.ends()]
    parts = any(objective.most_negatives is not None for objective in objectives)
    if parts or space.axes.keys() & {"proportion", "preference.optimization.global_batch"}:
        draws = config.targets.draws
        whole = largest.preference.optimization.model_copy(update={"steps": None, "epochs": float(draws)})
        plan = training_plan(largest, used, whole, draws)
    else:
        plan = alignment_plan(largest, objectives[0], used)
    buckets = pictures.buckets
    validation = (pictures.validation() or sorted(buckets))[: config.sweep.held_out]
    most = max(Counter(buckets[i] for i in validation).values())
    held_out = Plan.of_epochs({name: buckets[name] for name in validation}, config.run.seed, most, draws=1, epochs=1)
    size = config.targets.shard_size
    return (*plan.shards(size), *held_out.shards(size)), held_out

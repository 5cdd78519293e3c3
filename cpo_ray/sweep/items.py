"""Which targets the trials of a sweep share. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cpo_ray.config import Config
from cpo_ray.config.sweep import Sweep
from cpo_ray.core.plan import Plan, split_of
from cpo_ray.data.buckets import Bucket
from cpo_ray.recipes import alignment_plan, training_pictures, training_plan
from cpo_ray.sweep.space import point_config
from cpo_ray.targets.store import Items


def sweep_items(config: Config, sweep: Sweep, pictures: Mapping[str, Bucket]) -> tuple[tuple[Items, ...], Plan]:
    """The shards that hold every item of every trial, and the plan of the held-out items, each bucket a step.

    `pictures` are those of the whole data set with their buckets. Where trials take a part of the pictures the shards hold all
    draws of the largest share, since a smaller part visits its pictures more often; else they are those that the job of a single
    run would compute.
    """
    objective, size, draws = config.preference.objective, config.targets.shard_size, config.targets.draws
    if sweep.space.proportion is None and objective.most_negatives is None:
        plan = alignment_plan(config, objective, training_pictures(config, pictures))
    else:
        largest = config
        if sweep.space.proportion is not None:
            largest = point_config(config, {"proportion": sweep.space.proportion.largest})
        whole = config.preference.optimization.model_copy(update={"steps": None, "epochs": float(draws)})
        plan = training_plan(config, training_pictures(largest, pictures), whole, draws)
    validation = ([i for i in pictures if split_of(i) == "validation"] or sorted(pictures))[: sweep.held_out]
    most = max(Counter(pictures[i] for i in validation).values())
    held_out = Plan.of_epochs({name: pictures[name] for name in validation}, config.run.seed, most, draws=1, epochs=1)
    return (*plan.shards(size), *held_out.shards(size)), held_out

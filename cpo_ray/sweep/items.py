"""Which targets the trials of a sweep share. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cpo_ray.config import Config
from cpo_ray.pipeline import training_ids, training_plan
from cpo_ray.plan import Plan, split_of
from cpo_ray.sweep.settings import Sweep
from cpo_ray.sweep.space import point_config
from cpo_ray.targets.store import Items


def sweep_items(config: Config, sweep: Sweep, ids: Sequence[str]) -> tuple[tuple[Items, ...], Plan]:
    """The shards that hold every item of every trial, and the plan whose one step is the held-out items.

    `ids` are those of the whole data set. Where the share of the data is searched the shards hold all draws of the largest
    share, since a smaller one visits its pictures more often; else they are those that the job of a single run would compute.
    """
    optimization, size, draws = config.preference.optimization, config.targets.shard_size, config.targets.draws
    if sweep.space.proportion is None:
        plan = training_plan(config, training_ids(config, ids), optimization, draws)
    else:
        largest = point_config(config, {"proportion": sweep.space.proportion.largest})
        whole = optimization.model_copy(update={"steps": None, "epochs": float(draws)})
        plan = training_plan(config, training_ids(largest, ids), whole, draws)
    validation = ([i for i in ids if split_of(i) == "validation"] or sorted(ids))[: sweep.held_out]
    held_out = Plan.build(validation, config.run.seed, len(validation), 1, steps=1)
    return (*plan.shards(size), *held_out.shards(size)), held_out

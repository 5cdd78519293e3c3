"""The points of a sweep: which there are, in which order, and what they change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cpo_ray.config import Config, ConfigError, dump, load
from cpo_ray.config.sweep import Sweep
from cpo_ray.core.plan import Item, split_of
from cpo_ray.data.buckets import Bucket
from cpo_ray.recipes import training_pictures, training_plan
from cpo_ray.sweep.items import sweep_items
from cpo_ray.sweep.space import label, listed_points, parameters, point_config, rung_steps, trial_id

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy_sweep.toml"


def sweep(space: str, *more: str) -> Sweep:
    found = config(space, *more).sweep
    assert found is not None
    return found


def config(space: str = "{ omega = [1.0, 2.0] }", *more: str) -> Config:
    return load(TOY, [f"sweep.space={space}", *more])


def test_a_grid_is_every_combination_once() -> None:
    points = listed_points(sweep('{ omega = [1.0, 2.0], beta = [10.0, 20.0, 30.0], objective = ["cpo", "cpo_s"] }'), seed=0)
    assert len(points) == len({trial_id(point) for point in points}) == 12
    assert points[0] == {"omega": 1.0, "beta": 10.0, "objective": "cpo"}
    assert points[-1] == {"omega": 2.0, "beta": 30.0, "objective": "cpo_s"}


def test_the_shipped_sweep_is_the_paper_s_table() -> None:
    found = load(TOY).sweep
    assert found is not None
    assert [point["omega"] for point in listed_points(found, seed=0)] == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_random_points_repeat_with_the_seed_and_never_among_themselves() -> None:
    drawn = sweep("{ omega_win = { low = 1.0, high = 3.0 }, beta = { low = 1.0, high = 1e4, log = true } }",
                  "sweep.search=random", "sweep.trials=400")  # fmt: skip
    points = listed_points(drawn, seed=3)
    assert points == listed_points(drawn, seed=3) != listed_points(drawn, seed=4)
    assert all(1 <= float(p["omega_win"]) <= 3 and 1 <= float(p["beta"]) <= 1e4 for p in points)
    # By magnitude, a quarter of the draws falls into each of the four decades: 100 ± 5 standard deviations of 8.7.
    decades = [math.floor(math.log10(float(p["beta"]))) for p in points]
    assert all(57 <= decades.count(decade) <= 143 for decade in range(4))
    # More trials of the same sweep begin with the same points, so that a longer one goes on where the shorter ended.
    assert listed_points(drawn.model_copy(update={"trials": 5}), seed=3) == points[:5]


def test_random_draws_from_lists_end_with_the_last_combination() -> None:
    drawn = sweep('{ omega = [1.0, 2.0], objective = ["cpo", "cpo_s"] }', "sweep.search=random", "sweep.trials=50")
    assert len(listed_points(drawn, seed=0)) == 4


def test_equal_points_are_one_trial_in_any_order() -> None:
    assert trial_id({"omega": 2.0, "beta": 5.0}) == trial_id({"beta": 5.0, "omega": 2.0}) != trial_id({"omega": 2.0, "beta": 6.0})
    assert label({"omega": 2.0, "beta": 12345.678, "objective": "cpo"}) == "ω 2, β 12346, objective cpo"


def test_a_point_changes_what_it_names_and_nothing_else() -> None:
    start = config()
    point = {"omega": 1.5, "beta": 7.0, "learning_rate": 1e-5, "objective": "cpo", "proportion": 0.25}
    found = parameters(point_config(start, point))
    assert found == {
        "omega_win": 1.5,
        "omega_lose": 1.5,
        "beta": 7.0,
        "learning_rate": 1e-5,
        "objective": "cpo",
        "proportion": 0.25,
    }
    free = parameters(point_config(start, {"omega_lose": 3.0}))
    assert (free["omega_win"], free["omega_lose"]) == (1.0, 3.0)
    changed = set(dump(point_config(start, {"beta": 7.0})).splitlines()) ^ set(dump(start).splitlines())
    assert changed == {"beta = 7.0", "beta = 1000.0"}


@pytest.mark.parametrize(
    ("steps", "rungs", "expected"),
    [(120, 3, (40, 80, 120)), (100, 3, (34, 68, 100)), (5, 2, (3, 5)), (2, 5, (1, 2)), (7, 1, (7,)), (6, 4, (2, 4, 6))],
)
def test_rungs_are_where_the_trainer_saves(steps: int, rungs: int, expected: tuple[int, ...]) -> None:
    every, found = rung_steps(steps, rungs)
    assert found == expected and len(found) <= rungs
    assert found == tuple(step for step in range(1, steps + 1) if step % every == 0 or step == steps)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sweep.space={}", "there is nothing to search"),
        ("sweep.space={ omega = [1.0], omega_win = [1.0] }", "search either omega or the two"),
        ("sweep.space={ beta = [0.0, 1.0] }", "beta can become 0; it must be above 0"),
        ("sweep.space={ proportion = [0.5, 1.5] }", "proportion can become 1.5; it is a share"),
        ("sweep.space={ omega = [2.0, 2.0] }", "a value stands in the list twice"),
        ("sweep.space={ omega = { low = 2.0 } }", "a range needs both low and high"),
        ("sweep.space={ omega = { low = 0.0, high = 1.0, log = true } }", "must begin above 0"),
        ("sweep.space={ omega = { low = 1.0, high = 2.0 } }", "a grid needs values, and omega is a range"),
        ("sweep.space={ omeg = [1.0] }", "unknown key 'sweep.space.omeg'; did you mean 'omega'?"),
        ("sweep.space={ omega = { lo = 1.0 } }", "unknown key 'sweep.space.omega.lo'; did you mean 'low'?"),
        ("sweep.search=tpe", "say how many trials"),
        ("sweep.grace_rungs=0", "'sweep.grace_rungs' is 0"),
    ],
)
def test_a_wrong_sweep_is_answered_with_a_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TOY, [override])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_scheduler_needs_a_rung_to_stop_at() -> None:
    with pytest.raises(ConfigError, match="a scheduler can stop nothing after 2 of 2 rungs"):
        load(TOY, ["sweep.scheduler=median", "sweep.grace_rungs=2"])


PICTURES = {f"picture-{number}": Bucket(64, 64, 64) for number in range(60)}
SMALL = ("preference.optimization.steps=9", "preference.optimization.global_batch=8", "targets.shard_size=8", "targets.draws=2")


def test_trials_read_the_shards_that_a_single_run_computes() -> None:
    start = config("{ omega = [1.0, 2.0] }", *SMALL, "sweep.held_out=3")
    assert start.sweep is not None
    shards, held_out = sweep_items(start, start.sweep, PICTURES)
    alone = training_plan(start, training_pictures(start, PICTURES), start.preference.optimization, 2).shards(8)
    assert list(shards[: len(alone)]) == alone
    (items,) = shards[len(alone) :]
    assert items == held_out.step(0).items and len(items) == 3
    assert all(split_of(item.sample_id) == "validation" for item in items)


def test_a_searched_share_reads_no_item_that_is_not_there() -> None:
    start = config("{ proportion = [0.2, 1.0] }", *SMALL)
    assert start.sweep is not None
    shards, _ = sweep_items(start, start.sweep, PICTURES)
    there = {item for items in shards for item in items}
    # The small share visits its pictures more often, with draws that the large one does not reach in as many steps.
    large, small = (_needed(start, share) for share in (1.0, 0.2))
    assert small - large and small | large <= there


def _needed(start: Config, share: float) -> set[Item]:
    trial = point_config(start, {"proportion": share})
    plan = training_plan(trial, training_pictures(trial, PICTURES), trial.preference.optimization, 2)
    return set(plan.production_order())

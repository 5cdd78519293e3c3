"""The points of a sweep: which there are, in which order, and what they change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cpo_ray.config import Config, ConfigError, dump, load
from cpo_ray.config.sweep.searched import Point
from cpo_ray.core.plan import Item
from cpo_ray.core.splits import split_of
from cpo_ray.data.buckets import Bucket
from cpo_ray.recipes import Usable, training_plan
from cpo_ray.sweep.items import sweep_items
from cpo_ray.sweep.space import SearchSpace, label, listed_points, parameters, point_config, rung_steps, trial_id

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy_sweep.toml"


def config(space: str = "{ omega = [1.0, 2.0] }", *more: str) -> Config:
    return load(TOY, [f"sweep.space={space}", *more])


def test_a_grid_is_every_combination_once() -> None:
    points = listed_points(config('{ omega = [1.0, 2.0], beta = [10.0, 20.0, 30.0], objective = ["cpo", "cpo_s"] }'))
    assert len(points) == len({trial_id(point) for point in points}) == 12
    assert points[0] == {"omega": 1.0, "beta": 10.0, "objective": "cpo"}
    assert points[-1] == {"omega": 2.0, "beta": 30.0, "objective": "cpo_s"}


def test_the_shipped_sweep_is_the_paper_s_table() -> None:
    assert [point["omega"] for point in listed_points(load(TOY))] == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_random_points_repeat_with_the_seed_and_never_among_themselves() -> None:
    space = "{ omega_win = { low = 1.0, high = 3.0 }, beta = { low = 1.0, high = 1e4, log = true } }"

    def drawn(seed: int, trials: int = 400) -> list[Point]:
        return listed_points(config(space, "sweep.search=random", f"sweep.trials={trials}", f"run.seed={seed}"))

    points = drawn(3)
    assert points == drawn(3) != drawn(4)
    assert all(1 <= float(p["omega_win"]) <= 3 and 1 <= float(p["beta"]) <= 1e4 for p in points)
    # By magnitude, a quarter of the draws falls into each of the four decades: 100 ± 5 standard deviations of 8.7.
    decades = [math.floor(math.log10(float(p["beta"]))) for p in points]
    assert all(57 <= decades.count(decade) <= 143 for decade in range(4))
    # More trials of the same sweep begin with the same points, so that a longer one goes on where the shorter ended.
    assert drawn(3, trials=5) == points[:5]


def test_random_draws_from_lists_end_with_the_last_combination() -> None:
    drawn = config('{ omega = [1.0, 2.0], objective = ["cpo", "cpo_s"] }', "sweep.search=random", "sweep.trials=50")
    assert len(listed_points(drawn)) == 4


def test_integers_are_drawn_from_ranges_of_integers_with_both_ends() -> None:
    numbers = "lora.alpha = { low = 1.0, high = 2.0 }, preference.lora.rank = { low = 4, high = 8 }"
    space = f"{{ preference.{numbers}, preference.optimization.warmup_steps = {{ low = 1, high = 100, log = true }} }}"
    points = listed_points(config(space, "sweep.search=random", "sweep.trials=300"))
    ranks, steps = ([point[f"preference.{name}"] for point in points] for name in ("lora.rank", "optimization.warmup_steps"))
    assert {type(value) for value in (*ranks, *steps)} == {int}
    assert set(ranks) == {4, 5, 6, 7, 8} and 1 in steps and set(steps) <= set(range(1, 101))
    small = sum(int(step) < 10 for step in steps)
    assert 107 <= small <= 193, "log 10 / log 101 of the magnitudes: 150 ± 5 standard deviations of 8.7"


PULL = "support.outside.objective:PULL"
OWN = f"{{ beta = [1.0, 2.0], objective = ['cpo', '{PULL}'], preference.objective.strength = [3.0, 4.0, 5.0] }}"


@pytest.mark.parametrize("search", ["grid", "random"])
def test_a_trial_has_the_settings_of_its_own_objective(search: str) -> None:
    points = listed_points(config(OWN, f"sweep.search={search}", "sweep.trials=50"))
    assert len(points) == 2 + 3
    assert (
        sorted(tuple(point) for point in points)
        == [("beta", "objective")] * 2 + [("objective", "preference.objective.strength")] * 3
    )
    own = next(point for point in points if point["objective"] == PULL)
    told = point_config(config(OWN), own).preference.objective.model_dump()
    assert told == {"name": PULL, "most_negatives": None, "omega_win": 1.0, "strength": own["preference.objective.strength"]}
    assert label(own).startswith(f"objective {PULL}, strength ")
    assert parameters(point_config(config(OWN), own), own).keys() == {
        "omega_win", "learning_rate", "proportion", "objective", "preference.objective.strength",
    }  # fmt: skip


def test_the_ends_are_each_end_once_and_the_largest_are_for_planning() -> None:
    space = SearchSpace(config("{ omega = [1.0, 2.0, 3.0], preference.lora.rank = [16, 4], objective = ['cpo', 'cpo_s'] }"))
    assert [(point["omega"], point["preference.lora.rank"]) for point in space.ends()] == [(1, 16), (2, 16), (3, 16), (1, 4)] * 2
    assert space.largest() == [{"omega": 3.0, "objective": name, "preference.lora.rank": 16} for name in ("cpo", "cpo_s")]


def test_values_that_do_not_go_together_are_one_sentence() -> None:
    start = config("{ preference.optimization.parameters = ['lora'] }")
    with pytest.raises(
        ConfigError, match=r"^offload_optimizer true: 'preference.optimization': offload_optimizer needs zero_stage"
    ):
        point_config(start, {"preference.optimization.offload_optimizer": True})


def test_equal_points_are_one_trial_in_any_order() -> None:
    assert trial_id({"omega": 2.0, "beta": 5.0}) == trial_id({"beta": 5.0, "omega": 2.0}) != trial_id({"omega": 2.0, "beta": 6.0})
    assert label({"omega": 2.0, "beta": 12345.678, "objective": "cpo"}) == "ω 2, β 12346, objective cpo"
    assert (
        label({"preference.lora.rank": 8, "preference.optimization.offload_optimizer": True}) == "rank 8, offload_optimizer true"
    )
    assert (
        label({"preference.lora.rank": 8, "preference.objective.rank": 1})
        == "preference.lora.rank 8, preference.objective.rank 1"
    )


def test_a_point_changes_what_it_names_and_nothing_else() -> None:
    start = config()
    point: Point = {"omega": 1.5, "beta": 7.0, "learning_rate": 1e-5, "objective": "cpo", "proportion": 0.25}
    assert parameters(point_config(start, point), point) == {
        "omega_win": 1.5,
        "omega_lose": 1.5,
        "beta": 7.0,
        "learning_rate": 1e-5,
        "objective": "cpo",
        "proportion": 0.25,
    }
    free = parameters(point_config(start, {"omega_lose": 3.0}), ["omega_lose"])
    assert (free["omega_win"], free["omega_lose"]) == (1.0, 3.0)
    alone = dump(start).partition("[sweep]")[0]
    changed = set(dump(point_config(start, {"beta": 7.0})).splitlines()) ^ set(alone.splitlines())
    assert changed == {"beta = 7.0", "beta = 1000.0"}


@pytest.mark.parametrize(
    ("steps", "rungs", "expected"),
    [(120, 3, (40, 80, 120)), (100, 3, (34, 68, 100)), (5, 2, (3, 5)), (2, 5, (1, 2)), (7, 1, (7,)), (6, 4, (2, 4, 6))],
)
def test_rungs_are_where_the_trainer_saves(steps: int, rungs: int, expected: tuple[int, ...]) -> None:
    every, found = rung_steps(steps, rungs)
    assert found == expected and len(found) <= rungs
    assert found == tuple(step for step in range(1, steps + 1) if step % every == 0 or step == steps)


PICTURES = Usable({f"picture-{number}": Bucket(64, 64, 64) for number in range(60)})
SMALL = ("preference.optimization.steps=9", "preference.optimization.global_batch=8", "targets.shard_size=8", "targets.draws=2")


def test_trials_read_the_shards_that_a_single_run_computes() -> None:
    start = config("{ omega = [1.0, 2.0] }", *SMALL, "sweep.held_out=3")
    shards, held_out = sweep_items(start, PICTURES)
    alone = training_plan(start, PICTURES.training(start.data.proportion), start.preference.optimization, 2).shards(8)
    assert list(shards[: len(alone)]) == alone
    (items,) = shards[len(alone) :]
    assert items == held_out.step(0).items and len(items) == 3
    assert all(split_of(item.sample_id) == "validation" for item in items)


def test_a_searched_share_reads_no_item_that_is_not_there() -> None:
    start = config("{ proportion = [0.2, 1.0] }", *SMALL)
    shards, _ = sweep_items(start, PICTURES)
    there = {item for items in shards for item in items}
    # The small share visits its pictures more often, with draws that the large one does not reach in as many steps.
    large, small = (_needed(start, share) for share in (1.0, 0.2))
    assert small - large and small | large <= there


@pytest.mark.parametrize("axis", ["preference.optimization.steps = [4, 9]", "preference.optimization.global_batch = [4, 8]"])
def test_trials_of_any_length_find_their_items(axis: str) -> None:
    start = config(f"{{ {axis} }}", *SMALL)
    there = {item for items in sweep_items(start, PICTURES)[0] for item in items}
    for point in listed_points(start):
        trial = point_config(start, point)
        plan = training_plan(trial, PICTURES.training(trial.data.proportion), trial.preference.optimization, 2)
        assert set(plan.production_order()) <= there


def _needed(start: Config, share: float) -> set[Item]:
    trial = point_config(start, {"proportion": share})
    plan = training_plan(trial, PICTURES.training(trial.data.proportion), trial.preference.optimization, 2)
    return set(plan.production_order())

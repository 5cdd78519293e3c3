from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cpo_ray.core.plan import Item, Plan
from cpo_ray.core.randomness import counter_generator, hash_fraction
from cpo_ray.core.splits import split_of

IDS = [f"painting-{number}" for number in range(11)]


def planned_items(plan: Plan, first_step: int = 0) -> list[Item]:
    return [item for k in range(first_step, plan.steps) for item in plan.step(k).planned]


def test_counter_generator_is_the_same_in_every_process() -> None:
    generator = counter_generator(7, "painting-1", 2, "noise")
    assert generator.integers(0, 2**32, 3).tolist() == [2905391272, 2625676548, 1292724339]


@pytest.mark.parametrize("other", [(8, "a", 0, "noise"), (7, "b", 0, "noise"), (7, "a", 1, "noise"), (7, "a", 0, "t")])
def test_counter_generator_depends_on_every_argument(other: tuple[int, str, int, str]) -> None:
    ours = counter_generator(7, "a", 0, "noise").standard_normal(20_000)
    theirs = counter_generator(*other).standard_normal(20_000)
    # Uncorrelated, not merely different: the standard error of a correlation of 20,000 pairs is 0.007.
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 0.03


def test_hash_fraction_is_fixed_and_spread_evenly() -> None:
    assert hash_fraction("painting-1") == 0.2509243531364266
    tenths = Counter(int(10 * hash_fraction(str(number))) for number in range(10_000))
    assert set(tenths) == set(range(10))
    assert all(abs(count - 1000) < 150 for count in tenths.values())


def test_split_has_the_fractions_asked_for() -> None:
    counts = Counter(split_of(f"sample-{number}") for number in range(10_000))
    assert counts == {"train": 7937, "validation": 1007, "test": 1056}
    assert {split_of(sample_id, (0.0, 0.0, 1.0)) for sample_id in IDS} == {"test"}
    assert {split_of(sample_id, (0.0, 1.0, 0.0)) for sample_id in IDS} == {"validation"}


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_split_refuses_impossible_fractions(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split_of("a", fractions)


def test_a_small_plan_by_hand() -> None:
    plan = Plan.of_epochs("abcde", seed=7, global_batch=4, draws=2, epochs=3)
    steps = [plan.step(k) for k in range(plan.steps)]
    written = [" ".join(f"{item.sample_id}{item.draw}" for item in step.items) for step in steps]
    # Three orders of abcde: a d b e c, c a d e b, and c d e a b with draw 0 again; then one padding entry.
    assert written == ["a0 d0 b0 e0", "c0 c1 a1 d1", "e1 b1 c0 d0", "e0 a0 b0 e0"]
    assert [step.weights for step in steps] == [(1.0,) * 4] * 3 + [(1.0, 1.0, 1.0, 0.0)]
    assert plan.fingerprint() == "b7973af66bfba785c50e83b27bfddb6d"


@pytest.mark.parametrize("global_batch", [1, 3, 4, 11, 16])
def test_every_epoch_visits_each_sample_once_with_its_draw(global_batch: int) -> None:
    plan = Plan.of_epochs(IDS, seed=1, global_batch=global_batch, draws=3, epochs=5)
    items = planned_items(plan)
    orders = []
    for epoch in range(5):
        visited = items[epoch * len(IDS) : (epoch + 1) * len(IDS)]
        assert sorted(visited) == sorted(Item(sample_id, epoch % 3) for sample_id in IDS)
        orders.append(tuple(item.sample_id for item in visited))
    assert len(set(orders)) == 5
    assert len(items) == 5 * len(IDS)
    assert sum(weight for k in range(plan.steps) for weight in plan.step(k).weights) == 5 * len(IDS)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 5, 6, 7])
def test_ranks_share_each_step_exactly(world_size: int, micro_batch: int) -> None:
    plan = Plan.of_epochs(IDS, seed=1, global_batch=6, draws=2, epochs=2)
    for k in range(plan.steps):
        ranks = [plan.rank_microbatches(k, rank, world_size, micro_batch) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        batches = [batch for rank in ranks for batch in rank]
        assert all(len(batch.items) == len(batch.weights) == micro_batch for batch in batches)
        union = [item for batch in batches for item in batch.planned]
        assert sorted(union) == sorted(plan.step(k).planned)


def test_fewer_items_than_ranks_leaves_ranks_with_padding_only() -> None:
    plan = Plan.of_steps(["a"], seed=1, global_batch=1, draws=1, steps=1)
    batches = [plan.rank_microbatches(0, rank, 3, 2) for rank in range(3)]
    assert [[batch.weights for batch in rank] for rank in batches] == [
        [(1.0, 0.0)],
        [(0.0, 0.0)],
        [(0.0, 0.0)],
    ]


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_resumed_run_trains_exactly_the_rest_on_any_world_size(stop: int) -> None:
    plan = Plan.of_epochs(IDS, seed=1, global_batch=4, draws=2, epochs=3)
    before = [item for k in range(stop) for rank in range(2) for b in plan.rank_microbatches(k, rank, 2, 2) for item in b.planned]
    again = Plan.of_epochs(IDS, seed=1, global_batch=4, draws=2, epochs=3)
    after = [
        item
        for k in range(stop, again.steps)
        for rank in range(3)
        for batch in again.rank_microbatches(k, rank, 3, 1)
        for item in batch.planned
    ]
    assert Counter(before) + Counter(after) == Counter(planned_items(plan))
    assert sorted(after) == sorted(planned_items(plan, stop))


def test_the_order_in_which_ids_are_given_does_not_matter() -> None:
    forwards = Plan.of_epochs(IDS, seed=1, global_batch=4, draws=2, epochs=2)
    backwards = Plan.of_epochs(reversed(IDS), seed=1, global_batch=4, draws=2, epochs=2)
    assert forwards == backwards
    assert planned_items(forwards) == planned_items(backwards)


def test_steps_and_fractions_of_an_epoch() -> None:
    by_steps = Plan.of_steps(IDS, seed=1, global_batch=4, draws=2, steps=3)
    assert (by_steps.steps, len(planned_items(by_steps))) == (3, 12)
    half = Plan.of_epochs(IDS, seed=1, global_batch=4, draws=2, epochs=0.55)
    assert (half.steps, len(planned_items(half))) == (2, 6)
    assert planned_items(half) == planned_items(by_steps)[:6]


@pytest.mark.parametrize(("epochs", "distinct"), [(0.5, 6), (1, 11), (2, 22), (3, 33), (7, 33)])
def test_production_order_is_the_order_of_first_use(epochs: float, distinct: int) -> None:
    plan = Plan.of_epochs(IDS, seed=1, global_batch=4, draws=3, epochs=epochs)
    assert plan.production_order() == list(dict.fromkeys(planned_items(plan)))
    assert len(plan.production_order()) == distinct


def test_shards_cut_the_production_order_into_consecutive_pieces() -> None:
    plan = Plan.of_epochs(IDS, seed=1, global_batch=4, draws=3, epochs=3)
    shards = plan.shards(8)
    assert [len(shard) for shard in shards] == [8, 8, 8, 8, 1]
    assert [item for shard in shards for item in shard] == plan.production_order()


@pytest.mark.parametrize("change", [{"seed": 2}, {"global_batch": 5}, {"draws": 3}, {"epochs": 3}, {"samples": IDS[1:]}])
def test_fingerprint_changes_with_everything(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"samples": IDS, "seed": 1, "global_batch": 4, "draws": 2, "epochs": 2}
    assert Plan.of_epochs(**base).fingerprint() != Plan.of_epochs(**(base | change)).fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": ["a", "b", "a"]}, "'a'"),
        ({"samples": []}, "no samples"),
        ({"global_batch": 0}, "global_batch is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": float("nan")}, "epochs is nan"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_sentence(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "samples": IDS,
        "seed": 1,
        "global_batch": 4,
        "draws": 2,
        "epochs": 2,
    } | change
    with pytest.raises(ValueError, match=message):
        Plan.of_epochs(**arguments)


def test_a_plan_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        Plan.of_steps(IDS, seed=1, global_batch=4, draws=2, steps=0)


def test_questions_beyond_the_plan_are_refused() -> None:
    plan = Plan.of_steps(IDS, seed=1, global_batch=4, draws=2, steps=3)
    for k in (-1, 3):
        with pytest.raises(ValueError, match="steps 0 to 2"):
            plan.step(k)
    for rank, world_size, micro_batch in ((2, 2, 1), (-1, 2, 1), (0, 2, 0)):
        with pytest.raises(ValueError, match="impossible"):
            plan.rank_microbatches(0, rank, world_size, micro_batch)
    with pytest.raises(ValueError, match="shard_size is 0"):
        plan.shards(0)


def test_another_order_trains_the_same_items_from_the_same_shards() -> None:
    plan = Plan.of_steps(IDS, seed=7, global_batch=4, draws=2, steps=9)  # 36 items: three epochs and a part of the fourth
    other, same = replace(plan, order=1), replace(plan, order=7)
    assert [plan.step(k) for k in range(9)] == [same.step(k) for k in range(9)]
    assert planned_items(other) != planned_items(plan)
    for first in (0, 11, 22, 33):  # each epoch has its samples and draws, the last one those that `seed` chose for it
        assert sorted(planned_items(other)[first : first + 11]) == sorted(planned_items(plan)[first : first + 11])
    assert other.shards(4) == plan.shards(4) and other.fingerprint() != plan.fingerprint()
    assert other == replace(plan, order=1) != replace(plan, order=2)

"""Plans of pictures in several buckets: nothing meets in a tensor that differs in shape, and nothing is lost for that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from cpo_ray.core.plan import Item, Plan

#: a d b e c, then c a d e b are the first epochs of these with seed 7 (see test_plan.py).
LETTERS = {"a": "tall", "b": "tall", "c": "wide", "d": "wide", "e": "wide"}


def spelled(items: tuple[Item, ...]) -> str:
    return " ".join(f"{item.sample_id}{item.draw}" for item in items)


def test_groups_by_hand() -> None:
    plan = Plan.of_epochs(LETTERS, seed=7, global_batch=4, draws=2, epochs=2, bucket_batch=2)
    # d0 waits for e0 while a0 b0 is complete; c0 waits for the next epoch; nobody is left for a second group at the end.
    assert [spelled(plan.step(k).items) for k in range(plan.steps)] == ["a0 b0 d0 e0", "c0 c1 d1 e1", "a1 b1 a1 a1"]
    assert [plan.step(k).weights for k in range(3)] == [(1.0,) * 4] * 2 + [(1.0, 1.0, 0.0, 0.0)]
    assert [spelled(shard) for shard in plan.shards(2)] == ["a0 b0", "d0 e0", "c0 c1", "d1 e1", "a1 b1"]
    assert [spelled(shard) for shard in plan.shards(3)] == ["a0 b0 a1", "d0 e0 c0", "c1 d1 e1", "b1"]
    # Two ranks take a group each; three ranks of one item at a time take two micro-batches, of which two are padding.
    assert [spelled(b.items) for rank in range(2) for b in plan.rank_microbatches(0, rank, 2, 4)] == ["a0 b0", "d0 e0"]
    single = [plan.rank_microbatches(0, rank, 3, 1) for rank in range(3)]
    assert [[spelled(batch.planned) for batch in rank] for rank in single] == [["a0", "e0"], ["b0", ""], ["d0", ""]]


def test_steps_are_as_many_as_asked_for() -> None:
    plan = Plan.of_steps(LETTERS, seed=7, global_batch=4, draws=2, steps=2, bucket_batch=2)
    # A fifth group would begin with d1; so the plan ends with a1, alone in its group.
    assert (plan.steps, plan.total_items) == (2, 7)
    assert [spelled(plan.step(k).planned) for k in range(2)] == ["a0 b0 d0 e0", "c0 c1 a1"]


def test_one_bucket_is_the_same_plan_as_none() -> None:
    ids = [f"painting-{number}" for number in range(11)]
    plain = Plan.of_epochs(ids, seed=1, global_batch=6, draws=3, epochs=5)
    assert Plan.of_epochs(dict.fromkeys(ids, "square"), 1, 6, 3, epochs=5, bucket_batch=2) == plain
    assert plain.fingerprint() != Plan.of_epochs({i: i[-1] == "0" for i in ids}, 1, 6, 3, epochs=5).fingerprint()


@pytest.mark.parametrize("seed", range(12))
def test_no_batch_mixes_and_no_item_is_lost(seed: int) -> None:
    """Random data sets with common and rare buckets, on one, two and three ranks."""
    generator = np.random.default_rng(seed)
    ids = [f"picture-{number}" for number in range(generator.integers(3, 60))]
    shares = generator.dirichlet([0.5] * 6)
    buckets = {name: int(generator.choice(6, p=shares)) for name in ids}
    together = int(generator.choice([1, 2, 3, 6, 12]))
    backwards = dict(reversed(buckets.items()))
    if seed % 2:
        plan, again = (Plan.of_epochs(samples, seed, 12, 2, 2.5, together) for samples in (buckets, backwards))
    else:
        plan, again = (Plan.of_steps(samples, seed, 12, 2, 7, together) for samples in (buckets, backwards))
    assert plan == again
    planned = [plan.step(k).planned for k in range(plan.steps)]

    # Each sample of an epoch once, with its draw: the items are those of the plan without buckets.
    assert sum(map(len, planned)) == plan.total_items
    plain = Plan(plan.sample_ids, seed, 12, 2, plan.total_items)
    assert Counter(i for step in planned for i in step) == Counter(i for k in range(plain.steps) for i in plain.step(k).planned)
    assert seed % 2 or plan.steps == 7
    for world_size, micro_batch in ((1, 4), (2, 3), (3, 2), (2, 100)):
        shapes = set()
        for k in range(plan.steps):
            ranks = [again.rank_microbatches(k, rank, world_size, micro_batch) for rank in range(world_size)]
            batches = [batch for rank in ranks for batch in rank]
            assert all(len({buckets[item.sample_id] for item in batch.items}) == 1 for batch in batches)
            assert Counter(item for batch in batches for item in batch.planned) == Counter(planned[k])
            shapes |= {(len(rank), len(batch.items)) for rank in ranks for batch in rank}
        assert len(shapes) == 1, "every rank takes as many micro-batches of the same size in every step"
        assert next(iter(shapes))[1] <= micro_batch

    order = plan.production_order()
    assert order == list(dict.fromkeys(item for step in planned for item in step))
    shards = plan.shards(5)
    assert sorted(item for shard in shards for item in shard) == sorted(order)
    assert all(len({buckets[item.sample_id] for item in shard}) == 1 for shard in shards)
    assert all(order.index(a[0]) < order.index(b[0]) for a, b in pairwise(shards)), "first what is needed first"
    incomplete = Counter(buckets[shard[0].sample_id] for shard in shards if len(shard) < 5)
    assert max(incomplete.values(), default=0) <= 1


def test_short_groups_come_at_the_end_only() -> None:
    """3 rare pictures among 100 cost one padded group, and no step before the last is short."""
    buckets = {f"picture-{number}": number < 3 for number in range(100)}
    plan = Plan.of_epochs(buckets, seed=0, global_batch=16, draws=1, epochs=1, bucket_batch=4)
    # 97 pictures make 24 groups of 4 and one of 1, and 3 one more: 26 groups in steps of 4.
    assert [len(plan.step(k).planned) for k in range(plan.steps)] == [16] * 6 + [4]


def test_a_group_must_divide_the_step() -> None:
    with pytest.raises(ValueError, match="bucket_batch is 3; it must divide global_batch, 4"):
        Plan.of_epochs(LETTERS, 7, 4, 2, epochs=1, bucket_batch=3)


@pytest.mark.parametrize("seed", range(4))
def test_another_order_has_as_many_steps_and_the_same_items(seed: int) -> None:
    generator = np.random.default_rng(seed)
    buckets = {f"picture-{number}": int(generator.integers(4)) for number in range(50)}
    plan = Plan.of_steps(buckets, seed, global_batch=12, draws=2, steps=17, bucket_batch=4)
    other = replace(plan, order=100)
    items, others = (Counter(i for k in range(each.steps) for i in each.step(k).planned) for each in (plan, other))
    assert other.steps == plan.steps == 17 and items == others and other.shards(8) == plan.shards(8)
    assert any(other.step(k) != plan.step(k) for k in range(17))
    assert all(len({buckets[i.sample_id] for i in b.items}) == 1 for k in range(17) for b in other.rank_microbatches(k, 0, 1, 4))

"""Decide which sample and which noisy draw is trained at which step: a pure function of the seed.

Nothing here keeps state. Step 500 of a plan is the same whether the run started at step 0 or resumed there, on one rank or on
five. A producer that follows `Plan.production_order` stays just ahead of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpo_ray.core.randomness import digest

#: Ids, or ids with their buckets.
Samples = Iterable[str] | Mapping[str, Any]


class Item(NamedTuple):
    """One noisy draw of one sample: the unit that the expert evaluates once and a training step reads."""

    sample_id: str
    draw: int


@dataclass(frozen=True)
class Batch:
    """Items with their weights: 1 for a planned item, 0 for padding.

    Padding repeats an item, so that loading a batch needs no special case. The loss of a step is sum(weight * loss) over all
    ranks, divided by the number of items planned for the step.
    """

    items: tuple[Item, ...]
    weights: tuple[float, ...]

    @property
    def planned(self) -> tuple[Item, ...]:
        """The items without the padding."""
        return tuple(item for item, weight in zip(self.items, self.weights, strict=True) if weight > 0)


@dataclass(frozen=True)
class Plan:
    """The training order of a run; make one with `Plan.of_epochs` or `Plan.of_steps`.

    Epoch e (from 0) visits every sample once, in an order of its own, with draw e % draws. Batches cross the border of two
    epochs, and only the very last batch is padded.

    Samples of different buckets never share a tensor. A step consists of groups of `bucket_batch` items of one bucket, and a
    group is complete as soon as the epochs have brought enough items. Items left over at the end form a padded group, so that
    every item is trained. Whole steps of one bucket would leave most of a step over in every bucket, and show the optimizer one
    aspect ratio at a time.
    """

    sample_ids: tuple[str, ...]
    seed: int
    global_batch: int
    draws: int
    total_items: int
    buckets: tuple[int, ...] = ()
    """The number of each sample's bucket; empty if all samples share one."""
    bucket_batch: int | None = None
    """A divisor of global_batch; None means global_batch itself."""
    order: int | None = None
    """Seed of another order of the same items. `seed` still decides which samples a shortened last epoch has, and the shards."""

    def __post_init__(self) -> None:
        if not self.sample_ids:
            raise ValueError("the plan has no samples; give at least one sample id")
        repeated = {a for a, b in pairwise(self.sample_ids) if a == b}
        if repeated:
            raise ValueError(f"{len(repeated)} sample ids repeat, such as {min(repeated)!r}; make them unique")
        assert all(a < b for a, b in pairwise(self.sample_ids)), "the constructors sort the ids"
        for name in ("global_batch", "draws", "total_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"the plan's {name} is {getattr(self, name)}; it must be at least 1")
        if self.bucket_batch is not None and (self.bucket_batch < 1 or self.global_batch % self.bucket_batch):
            raise ValueError(f"bucket_batch is {self.bucket_batch}; it must divide global_batch, {self.global_batch}")
        assert len(self.buckets) in (0, len(self.sample_ids))

    @classmethod
    def of_epochs(
        cls, samples: Samples, seed: int, global_batch: int, draws: int, epochs: float, bucket_batch: int | None = None
    ) -> Plan:
        """Plan a run of `epochs`, rounded to whole items.

        The order of `samples` does not matter. They are ids, or a mapping from ids to buckets in any sortable form; one bucket
        for all gives the same plan as none. `draws` is the number of distinct noisy draws per sample. Raises ValueError for
        repeated ids, an empty list, or a number below its least value.
        """
        if not (math.isfinite(epochs) and epochs > 0):
            raise ValueError(f"epochs is {epochs}; it must be a number above 0")
        ordered, buckets = _numbered(samples)
        total_items = max(1, round(epochs * len(ordered)))
        return cls(ordered, seed, global_batch, draws, total_items, buckets, bucket_batch if buckets else None)

    @classmethod
    def of_steps(
        cls, samples: Samples, seed: int, global_batch: int, draws: int, steps: int, bucket_batch: int | None = None
    ) -> Plan:
        """Plan a run of `steps`, as `of_epochs` does otherwise. With several buckets some steps hold fewer items."""
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be at least 1")
        ordered, buckets = _numbered(samples)
        plan = cls(ordered, seed, global_batch, draws, steps * global_batch, buckets, bucket_batch if buckets else None)
        return replace(plan, total_items=plan._fill(steps)) if buckets else plan

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self._groups) if self.buckets else math.ceil(self.total_items / self.global_batch)

    @property
    def _group(self) -> int:
        return self.bucket_batch or self.global_batch

    def _fill(self, steps: int) -> int:
        """Return how many items fit into `steps` steps, in the order of the epochs."""
        orders = (_epoch_order(self.sample_ids, self.seed, epoch) for epoch in count())
        endless = (self.buckets[number] for order in orders for number in order)
        return sum(map(len, _gathered(endless, self._group, steps * self.global_batch // self._group)))

    @cached_property
    def _sequence(self) -> NDArray[np.int32]:
        """Return the numbers of the samples (total_items,) in the order of the epochs."""
        epochs = math.ceil(self.total_items / len(self.sample_ids))
        return np.concatenate([self._epoch(epoch) for epoch in range(epochs)])

    def _epoch(self, epoch: int) -> NDArray[np.int32]:
        """Return the numbers of one epoch's samples in the order of training."""
        chosen = _epoch_order(self.sample_ids, self.seed, epoch)[: self.total_items - epoch * len(self.sample_ids)]
        ordered = chosen if self.order is None else _epoch_order(self.sample_ids, self.order, epoch)
        return ordered[np.isin(ordered, chosen)]

    @cached_property
    def _groups(self) -> NDArray[np.int64]:
        """Return places in `_sequence`, shaped (steps, groups per step, items per group); -1 is padding."""
        groups = _gathered(map(self._bucket, range(self.total_items)), self._group)
        in_step = self.global_batch // self._group
        places = np.full((math.ceil(len(groups) / in_step) * in_step, self._group), -1)
        for row, group in zip(places, groups, strict=False):
            row[: len(group)] = group
        return places.reshape(-1, in_step, self._group)

    def _bucket(self, place: int) -> int:
        return self.buckets[self._sequence[place]] if self.buckets else 0

    def _item(self, place: int) -> Item:
        return Item(self.sample_ids[self._sequence[place]], place // len(self.sample_ids) % self.draws)

    def step(self, k: int) -> Batch:
        """Return the `global_batch` entries of step k, from 0, group by group. Raises ValueError beyond the plan."""
        if not 0 <= k < self.steps:
            raise ValueError(f"step {k} is not in this plan, which has steps 0 to {self.steps - 1}")
        places = self._groups[k]
        # Padding repeats the first item of its group, or of the step if the group is all padding.
        filled = np.where(places < 0, places[:, :1], places)
        filled = np.where(filled < 0, places[0, 0], filled)
        weights = np.where(places < 0, 0.0, 1.0)
        return Batch(tuple(self._item(place) for place in filled.ravel().tolist()), tuple(weights.ravel().tolist()))

    def rank_microbatches(self, k: int, rank: int, world_size: int, micro_batch: int) -> list[Batch]:
        """Return what one rank computes in step k: equally many micro-batches of equal size on every rank, in every step.

        The union over the ranks holds each planned item of `step(k)` exactly once, for every world size. No micro-batch holds
        samples of two buckets. Raises ValueError for a rank outside the world or a micro-batch below 1.
        """
        if micro_batch < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of {world_size} with micro-batches of {micro_batch} is impossible; "
                "ranks run from 0 to world size - 1 and micro-batches have at least 1 item"
            )
        step = self.step(k)
        if self._group < self.global_batch:
            return _dealt(_pieces(step, self._group, micro_batch), rank, world_size)
        per_rank = math.ceil(self.global_batch / world_size)
        padded_rank = math.ceil(per_rank / micro_batch) * micro_batch
        whole = _padded(step, padded_rank * world_size)
        # The stride spreads padding over the ranks, so that no rank idles while another works.
        items, weights = whole.items[rank::world_size], whole.weights[rank::world_size]
        return [
            Batch(items[start : start + micro_batch], weights[start : start + micro_batch])
            for start in range(0, padded_rank, micro_batch)
        ]

    def production_order(self) -> list[Item]:
        """The distinct items of the plan, in the order of their first use."""
        return [self._item(place) for place in self._first_uses()]

    def shards(self, shard_size: int) -> list[tuple[Item, ...]]:
        """Cut `production_order` into pieces of `shard_size` items of one bucket, ordered by their first use.

        The last piece of a bucket may be shorter. Plans that differ only in `order` have the same shards.
        """
        if self.order is not None:
            return replace(self, order=None).shards(shard_size)
        if shard_size < 1:
            raise ValueError(f"shard_size is {shard_size}; it must be at least 1")
        places = self._first_uses()
        # Sorting orders the pieces by their first index.
        pieces = sorted(_gathered(map(self._bucket, places), shard_size))
        return [tuple(self._item(places[index]) for index in piece) for piece in pieces]

    def _first_uses(self) -> list[int]:
        """Return places in the order of training. Epoch `draws` repeats the items of epoch 0, each after its first use."""
        places = self._groups[self._groups >= 0]
        used: list[int] = places[places < len(self.sample_ids) * self.draws].tolist()
        return used

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change with anything that changes the plan."""
        numbers = (self.seed, self.global_batch, self.draws, self.total_items)
        buckets = (self._group, *self.buckets) if self.buckets else ()
        order = () if self.order is None else ("order", self.order)
        return digest(*numbers, *self.sample_ids, *buckets, *order, size=16).hex()


@lru_cache(maxsize=8)
def _epoch_order(sample_ids: tuple[str, ...], seed: int, epoch: int) -> NDArray[np.int32]:
    """Return the numbers of the samples in the order of one epoch."""
    order = sorted(range(len(sample_ids)), key=lambda number: digest(seed, epoch, sample_ids[number], size=16))
    return np.array(order, dtype=np.int32)


def _numbered(samples: Samples) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Sort the ids, number the buckets in sorted order, and return the ids with their numbers, if there are several buckets."""
    ordered = tuple(sorted(samples))
    if not isinstance(samples, Mapping):
        return ordered, ()
    numbers = {bucket: number for number, bucket in enumerate(sorted(set(samples.values())))}
    return ordered, tuple(numbers[samples[name]] for name in ordered) if len(numbers) > 1 else ()


def _gathered(buckets: Iterable[int], size: int, most: float = math.inf) -> list[list[int]]:
    """Gather the places of a sequence of buckets into groups of `size` places of one bucket, in the order in which they fill up.

    Incomplete groups come last. The sequence ends before a place would start more than `most` groups.
    """
    complete: list[list[int]] = []
    begun: dict[int, list[int]] = {}
    for place, bucket in enumerate(buckets):
        if bucket not in begun and len(complete) + len(begun) == most:
            break
        group = begun.setdefault(bucket, [])
        group.append(place)
        if len(group) == size:
            complete.append(begun.pop(bucket))
    return complete + list(begun.values())


def _pieces(step: Batch, group: int, micro_batch: int) -> list[Batch]:
    """Cut each group of a step into as few equal pieces of at most `micro_batch` items as possible."""
    size = math.ceil(group / math.ceil(group / micro_batch))
    bounds = (
        (start, min(start + size, first + group))
        for first in range(0, len(step.items), group)
        for start in range(first, first + group, size)
    )
    return [_padded(Batch(step.items[start:end], step.weights[start:end]), size) for start, end in bounds]


def _dealt(pieces: list[Batch], rank: int, world_size: int) -> list[Batch]:
    """Return the pieces of one rank, dealt in turn, padded so that all ranks have equally many."""
    mine = pieces[rank::world_size]
    idle = Batch(pieces[0].items, (0.0,) * len(pieces[0].items))
    return mine + [idle] * (math.ceil(len(pieces) / world_size) - len(mine))


def _padded(batch: Batch, size: int) -> Batch:
    missing = size - len(batch.items)
    return Batch(batch.items + batch.items[:1] * missing, batch.weights + (0.0,) * missing)

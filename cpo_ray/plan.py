"""Which sample and which noisy draw is trained at which step: a pure function of the seed.

Nothing here keeps state. A plan asked for step 500 answers the same whether the run came from step 0 or was
resumed there, on one rank or on five, and a producer that follows `Plan.production_order` stays just ahead of
it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

Split = Literal["train", "validation", "test"]


def _digest(*parts: str | int | float, size: int) -> bytes:
    """Hash of a tuple. JSON keeps ("a", "bc") apart from ("ab", "c"), and 1 apart from "1"."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=size).digest()


def counter_generator(seed: int, sample_id: str, draw: int, purpose: str) -> np.random.Generator:
    """Random numbers that belong to one draw of one sample for one purpose ("timestep", "noise", ...).

    Each call starts a fresh counter-based stream (Philox) keyed by its arguments, so the numbers do not
    depend on who asks, in which order, or how often.
    """
    key = int.from_bytes(_digest(seed, sample_id, draw, purpose, size=16), "little")
    return np.random.Generator(np.random.Philox(key=key))


def hash_fraction(text: str) -> float:
    """A fixed, uniformly spread number in [0, 1) for a text."""
    return (int.from_bytes(_digest(text, size=8), "little") >> 11) / 2**53


def split_of(sample_id: str, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> Split:
    """The split of a sample, by the hash of its id alone: it stays when other samples come or go.

    `fractions` are those of train, validation and test. Raises ValueError if they are negative or do not sum
    to 1.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1.0):
        raise ValueError(f"split fractions are {fractions}; give three numbers of at least 0 that sum to 1")
    # The prefix keeps the split independent of other uses of hash_fraction on the same id.
    position = hash_fraction(f"split/{sample_id}")
    if position < fractions[0]:
        return "train"
    return "validation" if position < fractions[0] + fractions[1] else "test"


class Item(NamedTuple):
    """One noisy draw of one sample: what the expert evaluates once, and a training step reads."""

    sample_id: str
    draw: int


@dataclass(frozen=True)
class Batch:
    """Items with their weights: 1 for a planned item, 0 for padding.

    Padding repeats the first item, so that whoever loads a batch needs no special case. The loss of a step is
    sum(weight * loss) over all ranks divided by the number of items planned for the step.
    """

    items: tuple[Item, ...]
    weights: tuple[float, ...]

    @property
    def planned(self) -> tuple[Item, ...]:
        """The items without the padding."""
        return tuple(item for item, weight in zip(self.items, self.weights, strict=True) if weight > 0)


@lru_cache(maxsize=8)
def _epoch_order(sample_ids: tuple[str, ...], seed: int, epoch: int) -> tuple[str, ...]:
    return tuple(sorted(sample_ids, key=lambda sample_id: _digest(seed, epoch, sample_id, size=16)))


@dataclass(frozen=True)
class Plan:
    """The training order of a run; make one with `Plan.build`.

    Epoch e (from 0) visits every sample once, in an order of its own, with draw e % draws. Batches run across
    the border of two epochs; only the very last batch is padded.
    """

    sample_ids: tuple[str, ...]
    seed: int
    global_batch: int
    draws: int
    total_items: int

    def __post_init__(self) -> None:
        if not self.sample_ids:
            raise ValueError("the plan has no samples; give at least one sample id")
        repeated = {a for a, b in pairwise(self.sample_ids) if a == b}
        if repeated:
            raise ValueError(f"{len(repeated)} sample ids repeat, such as {min(repeated)!r}; make them unique")
        assert all(a < b for a, b in pairwise(self.sample_ids)), "Plan.build sorts the ids"
        for name in ("global_batch", "draws", "total_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"the plan's {name} is {getattr(self, name)}; it must be at least 1")

    @classmethod
    def build(
        cls,
        sample_ids: Iterable[str],
        seed: int,
        global_batch: int,
        draws: int,
        *,
        epochs: float | None = None,
        steps: int | None = None,
    ) -> Plan:
        """Plan a run of so many epochs (rounded to whole items) or steps; give exactly one of the two.

        The order of `sample_ids` does not matter. `draws` is the number of distinct noisy draws per sample.
        Raises ValueError for repeated ids, an empty list, or a number below its least value.
        """
        ordered = tuple(sorted(sample_ids))
        if epochs is not None and steps is None:
            if not (math.isfinite(epochs) and epochs > 0):
                raise ValueError(f"epochs is {epochs}; it must be a number above 0")
            total_items = max(1, round(epochs * len(ordered)))
        elif steps is not None and epochs is None:
            if steps < 1:
                raise ValueError(f"steps is {steps}; it must be at least 1")
            total_items = steps * global_batch
        else:
            raise ValueError(f"epochs is {epochs} and steps is {steps}; give exactly one of the two")
        return cls(ordered, seed, global_batch, draws, total_items)

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return math.ceil(self.total_items / self.global_batch)

    def _items(self, first: int, last: int) -> tuple[Item, ...]:
        """The items at positions first to last - 1 of the endless sequence of epochs."""
        count = len(self.sample_ids)
        items: list[Item] = []
        # One look-up per epoch, not per item: the cache hashes all the ids each time.
        for epoch in range(first // count, math.ceil(last / count)):
            order = _epoch_order(self.sample_ids, self.seed, epoch)
            wanted = order[max(first - epoch * count, 0) : last - epoch * count]
            items.extend(Item(sample_id, epoch % self.draws) for sample_id in wanted)
        return tuple(items)

    def step(self, k: int) -> Batch:
        """The `global_batch` entries of step k, from 0. Raises ValueError beyond the plan."""
        if not 0 <= k < self.steps:
            raise ValueError(f"step {k} is not in this plan, which has steps 0 to {self.steps - 1}")
        first = k * self.global_batch
        last = min(first + self.global_batch, self.total_items)
        return _padded(self._items(first, last), self.global_batch)

    def rank_microbatches(self, k: int, rank: int, world_size: int, micro_batch: int) -> list[Batch]:
        """What one rank computes in step k: equally many micro-batches of equal size on every rank.

        The union over the ranks holds each planned item of `step(k)` exactly once, for every world size.
        Raises ValueError for a rank outside the world or a micro-batch below 1.
        """
        if micro_batch < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of {world_size} with micro-batches of {micro_batch} is impossible; "
                "ranks run from 0 to world size - 1 and micro-batches have at least 1 item"
            )
        per_rank = math.ceil(self.global_batch / world_size)
        padded_rank = math.ceil(per_rank / micro_batch) * micro_batch
        whole = _padded(self.step(k).planned, padded_rank * world_size)
        # Strided, so that padding is spread over the ranks and none idles while another works.
        items, weights = whole.items[rank::world_size], whole.weights[rank::world_size]
        return [
            Batch(items[start : start + micro_batch], weights[start : start + micro_batch])
            for start in range(0, padded_rank, micro_batch)
        ]

    def production_order(self) -> list[Item]:
        """The distinct items of the plan in the order of their first use."""
        # Epoch `draws` begins to repeat the items of epoch 0.
        distinct = min(self.total_items, len(self.sample_ids) * self.draws)
        return list(self._items(0, distinct))

    def shards(self, shard_size: int) -> list[tuple[Item, ...]]:
        """`production_order` cut into consecutive pieces of `shard_size` items; the last may be shorter."""
        if shard_size < 1:
            raise ValueError(f"shard_size is {shard_size}; it must be at least 1")
        order = self.production_order()
        return [tuple(order[start : start + shard_size]) for start in range(0, len(order), shard_size)]

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change with anything that changes the plan."""
        numbers = (self.seed, self.global_batch, self.draws, self.total_items)
        return _digest(*numbers, *self.sample_ids, size=16).hex()


def _padded(items: tuple[Item, ...], size: int) -> Batch:
    missing = size - len(items)
    return Batch(items + items[:1] * missing, (1.0,) * len(items) + (0.0,) * missing)

"""Pairs of annotated pictures that show the same and of which one is better, as Diffusion-DPO learns from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from cpo_ray.core.prompts import Labels
from cpo_ray.core.randomness import counter_generator

#: The id of the better picture of each pair → the id of the worse one.
Losers = Mapping[str, str]


def better(one: Labels, other: Labels) -> bool:
    """Return whether a picture has at least as many good attributes as another and at most as many bad ones, not both equal."""
    good = len(one.positive_ids) - len(other.positive_ids)
    bad = len(one.negative_ids) - len(other.negative_ids)
    return good >= 0 >= bad and (good, bad) != (0, 0)


def annotated_pairs(names: Iterable[str], labels: Callable[[str], Labels], seed: int) -> dict[str, str]:
    """Return a worse picture of the same prompt for each of the pictures that is better than some, chosen at random by the seed.

    Pictures that are better than none of their prompt win no pair; they may lose several. `labels` gives a picture's labels.
    """
    together: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        together[labels(name).prompt].append(name)
    pairs: dict[str, str] = {}
    for group in together.values():
        for winner in group:
            worse = [name for name in group if better(labels(winner), labels(name))]
            if worse:
                pairs[winner] = worse[int(counter_generator(seed, winner, 0, "loser").integers(len(worse)))]
    return pairs

"""What the pictures of a model are worth: one way to measure them, for a run, for the trials of a sweep and for a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cpo_ray.core.prompts import Labels
from cpo_ray.core.statistics import Interval, bootstrap_interval, paired_difference
from cpo_ray.evaluation.domain import Domain, Picture
from cpo_ray.evaluation.scorers.base import Drawn, PictureScorer, Scorer, SetScorer


@dataclass(frozen=True)
class Measured:
    """What was measured of one model: by scorer a number per picture, or an interval for all of them.

    `labels` are what the domain has read from each picture; None where nobody reads labels, or where they were not kept.
    """

    values: dict[str, tuple[float, ...]]
    sets: dict[str, Interval]
    labels: tuple[Labels, ...] | None = None

    @property
    def means(self) -> dict[str, float]:
        """One number per scorer."""
        means = {name: sum(values) / len(values) for name, values in self.values.items()}
        return means | {name: interval.mean for name, interval in self.sets.items()}

    def without_labels(self) -> Measured:
        """The numbers alone."""
        return replace(self, labels=None)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measured:
        """What `dataclasses.asdict` made of one, after a way through JSON."""
        sets = {name: Interval(**interval) for name, interval in values["sets"].items()}
        return cls({name: tuple(numbers) for name, numbers in values["values"].items()}, sets)


@dataclass(frozen=True)
class Scores:
    """A model's numbers with 95 % intervals over its pictures, and their paired changes against the base's."""

    intervals: dict[str, Interval]
    changes: dict[str, Interval]

    def flat(self, separator: str) -> dict[str, float]:
        """Every number under a key, as MLflow and tables of numbers take them: "content", "content.low", "content.high" …

        A change is called after its scorer, such as "negatives.change".
        """
        found = self.intervals | {f"{name}{separator}change": change for name, change in self.changes.items()}
        ends = (("", "mean"), (f"{separator}low", "low"), (f"{separator}high", "high"))
        return {f"{name}{suffix}": getattr(interval, end) for name, interval in found.items() for suffix, end in ends}


@dataclass(frozen=True)
class Comparison:
    """The models of one evaluation, by name in the order given, and the one that changes are counted from."""

    base: str
    scorers: tuple[Scorer, ...]
    models: dict[str, Scores]
    labels: dict[str, tuple[Labels, ...]]
    """By model; empty where nobody reads labels."""

    def as_json(self) -> dict[str, Any]:
        """By model its intervals and changes under the scorers' names, and the attributes found in each picture."""
        return {
            "base": self.base,
            "models": {
                name: {
                    **{key: vars(interval) for key, interval in found.intervals.items()},
                    "changes": {key: vars(change) for key, change in found.changes.items()},
                    "labels": [
                        {"positive_ids": one.positive_ids, "negative_ids": one.negative_ids} for one in self.labels.get(name, ())
                    ],
                }
                for name, found in self.models.items()
            },
        }


def measure(pictures: Sequence[Picture], prompts: Sequence[str], domain: Domain, scorers: Sequence[Scorer]) -> Measured:
    """Measure the pictures of one model; picture i was asked for by `prompts[i]`, the content alone.

    Raises ValueError where there is not one prompt per picture, or a scorer gives not one number per picture.
    """
    if len(pictures) != len(prompts):
        raise ValueError(f"there are {len(pictures)} pictures for {len(prompts)} prompts; give one prompt per picture")
    labels = tuple(domain.annotate(pictures, prompts)) if domain.reads_labels else None
    drawn = Drawn(pictures, prompts, labels)
    values, sets = {}, {}
    for scorer in scorers:
        if isinstance(scorer, PictureScorer):
            values[scorer.name] = _one_per_picture(scorer, drawn)
        elif isinstance(scorer, SetScorer):
            sets[scorer.name] = scorer.distance(drawn)
    return Measured(values, sets, labels)


def _one_per_picture(scorer: PictureScorer, drawn: Drawn) -> tuple[float, ...]:
    """What a scorer gives, which may be anybody's code. Raises ValueError for what is not one finite number per picture."""
    numbers = np.asarray(scorer.score(drawn), dtype=np.float64)
    if numbers.shape != (len(drawn.pictures),):
        raise ValueError(f"scorer {scorer.name!r} gave numbers of shape {numbers.shape} for {len(drawn.pictures)} pictures")
    if not np.isfinite(numbers).all():
        at = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"scorer {scorer.name!r} gave {numbers[at]} for picture {at} ({drawn.prompts[at]!r}); it must be finite")
    return tuple(numbers.tolist())


def scores(measured: Measured, base: Measured | None) -> Scores:
    """Intervals of what was measured; without `base` these are the base's own."""
    intervals = {name: bootstrap_interval(values, seed=0) for name, values in measured.values.items()} | measured.sets
    if base is None:
        return Scores(intervals, {})
    both = measured.values.keys() & base.values.keys()
    changes = {
        name: paired_difference(values, base.values[name], seed=0) for name, values in measured.values.items() if name in both
    }
    return Scores(intervals, changes)


def compare(measured: Mapping[str, Measured], scorers: Sequence[Scorer], base: str = "base") -> Comparison:
    """The models of one evaluation beside each other. Raises ValueError where the base is missing."""
    if base not in measured:
        raise ValueError(f"there are no pictures of the base {base!r} among {sorted(measured)}; changes are counted from it")
    found = {name: scores(one, None if name == base else measured[base]) for name, one in measured.items()}
    labels = {name: one.labels for name, one in measured.items() if one.labels is not None}
    return Comparison(base, tuple(scorers), found, labels)

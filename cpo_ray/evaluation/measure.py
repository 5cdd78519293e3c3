"""Measure the pictures of a model: one way for a run, for the trials of a sweep and for a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpo_ray.core.prompts import Labels
from cpo_ray.core.statistics import Interval, bootstrap_interval, paired_difference
from cpo_ray.evaluation.domain import Domain, Picture
from cpo_ray.evaluation.scorers.base import Drawn, NotScored, PictureScorer, Scorer, SetScorer


@dataclass(frozen=True, eq=False)
class Readings:
    """What the model of one `ModelScorer` has read: (N, D) from the pictures, and (M, D) from the reference if it has one."""

    pictures: NDArray[np.float32]
    reference: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Measured:
    """The measurements of one model: per scorer a number for each picture, or an interval for all of them.

    A number is None for a picture that could not be scored. `labels` are what the domain has read from each picture, None where
    it could not; they are None altogether if nothing reads labels, or they were not kept. `left_out` says why a scorer has no
    number at all, in a sentence.
    """

    values: dict[str, tuple[float | None, ...]]
    sets: dict[str, Interval]
    labels: tuple[Labels | None, ...] | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """One number per scorer."""
        numbers = {name: [value for value in values if value is not None] for name, values in self.values.items()}
        means = {name: sum(scored) / len(scored) for name, scored in numbers.items()}
        return means | {name: interval.mean for name, interval in self.sets.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measured:
        """Rebuild one from the JSON of `dataclasses.asdict`."""
        sets = {name: Interval(**interval) for name, interval in values["sets"].items()}
        numbers = {name: tuple(numbers) for name, numbers in values["values"].items()}
        return cls(numbers, sets, left_out=values.get("left_out", {}))


@dataclass(frozen=True)
class Scores:
    """A model's numbers with 95 % intervals over its pictures, and their paired changes against the base.

    `unscored` counts, by scorer, the pictures without a number, where there are any; the others make the intervals.
    """

    intervals: dict[str, Interval]
    changes: dict[str, Interval]
    unscored: dict[str, int] = field(default_factory=dict)

    def flat(self, separator: str) -> dict[str, float]:
        """Return every number under a key, as MLflow and tables take them: "content", "content.low", "content.high" …

        A change follows its scorer's name, such as "negatives.change", and so does the number of unscored pictures.
        """
        found = self.intervals | {f"{name}{separator}change": change for name, change in self.changes.items()}
        ends = (("", "mean"), (f"{separator}low", "low"), (f"{separator}high", "high"))
        flat = {f"{name}{suffix}": getattr(interval, end) for name, interval in found.items() for suffix, end in ends}
        return flat | {f"{name}{separator}unscored": float(count) for name, count in self.unscored.items()}


@dataclass(frozen=True)
class Comparison:
    """The models of one evaluation, by name in the given order, and the model that changes refer to."""

    base: str
    scorers: tuple[Scorer, ...]
    models: dict[str, Scores]
    labels: dict[str, tuple[Labels | None, ...]]
    """Labels by model, None for a picture that could not be read; empty if nothing reads labels."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Scorers that were chosen and have no number of every model, each with the reason, a sentence."""

    def as_json(self) -> dict[str, Any]:
        """Return each model's intervals and changes under the scorers' names, and the attributes found in each picture, null for
        one that could not be read.
        """
        return {
            "base": self.base,
            "left_out": self.left_out,
            "models": {
                name: {
                    **{key: vars(interval) for key, interval in found.intervals.items()},
                    "changes": {key: vars(change) for key, change in found.changes.items()},
                    "unscored": found.unscored,
                    "labels": [
                        None if one is None else {"positive_ids": one.positive_ids, "negative_ids": one.negative_ids}
                        for one in self.labels.get(name, ())
                    ],
                }
                for name, found in self.models.items()
            },
        }


def measure(
    pictures: Sequence[Picture],
    prompts: Sequence[str],
    domain: Domain,
    scorers: Sequence[Scorer],
    readings: Mapping[str, Readings] | None = None,
) -> Measured:
    """Measure the pictures of one model; picture i was asked for by `prompts[i]`, the content alone.

    `readings` are what models have read from these pictures, by scorer. A scorer that has no number is left out with its reason.
    Raises ValueError if there is not one prompt per picture, or a scorer does not give one number per picture.
    """
    if len(pictures) != len(prompts):
        raise ValueError(f"there are {len(pictures)} pictures for {len(prompts)} prompts; give one prompt per picture")
    labels = tuple(domain.annotate(pictures, prompts)) if domain.reads_labels else None
    drawn = Drawn(pictures, prompts, labels, domain=domain)
    values: dict[str, tuple[float | None, ...]] = {}
    sets: dict[str, Interval] = {}
    left_out: dict[str, str] = {}
    for scorer in scorers:
        read = (readings or {}).get(scorer.name)
        seen = drawn if read is None else replace(drawn, readings=read.pictures, reference=read.reference)
        try:
            if isinstance(scorer, PictureScorer):
                values[scorer.name] = _one_per_picture(scorer, seen)
            elif isinstance(scorer, SetScorer):
                sets[scorer.name] = scorer.distance(seen)
        except NotScored as error:
            left_out[scorer.name] = str(error)
    return Measured(values, sets, labels, left_out)


def _one_per_picture(scorer: PictureScorer, drawn: Drawn) -> tuple[float | None, ...]:
    """Return a scorer's numbers, which may come from anybody's code. Raises ValueError unless there is one number, or NaN, per
    picture, and a number at all.
    """
    numbers = np.asarray(scorer.score(drawn), dtype=np.float64)
    if numbers.shape != (len(drawn.pictures),):
        raise ValueError(f"scorer {scorer.name!r} gave numbers of shape {numbers.shape} for {len(drawn.pictures)} pictures")
    if np.isinf(numbers).any():
        at = int(np.flatnonzero(np.isinf(numbers))[0])
        raise ValueError(f"scorer {scorer.name!r} gave {numbers[at]} for picture {at} ({drawn.prompts[at]!r}); it must be finite")
    if np.isnan(numbers).all():
        raise ValueError(f"scorer {scorer.name!r} gave no number for any of {len(numbers)} pictures")
    return tuple(None if np.isnan(number) else float(number) for number in numbers)


def scores(measured: Measured, base: Measured | None) -> Scores:
    """Return intervals of the measurements, and changes against `base`; without `base` they are the base's own."""
    numbers = {name: [value for value in values if value is not None] for name, values in measured.values.items()}
    intervals = {name: bootstrap_interval(scored, seed=0) for name, scored in numbers.items()} | measured.sets
    unscored = {name: lost for name, scored in numbers.items() if (lost := len(measured.values[name]) - len(scored))}
    if base is None:
        return Scores(intervals, {}, unscored)
    changes = {}
    for name in (name for name in measured.values if name in base.values):
        pairs = zip(measured.values[name], base.values[name], strict=True)
        both = [(own, theirs) for own, theirs in pairs if own is not None and theirs is not None]
        if both:
            own, theirs = zip(*both, strict=True)
            changes[name] = paired_difference(own, theirs, seed=0)
    return Scores(intervals, changes, unscored)


def compare(measured: Mapping[str, Measured], scorers: Sequence[Scorer], base: str = "base") -> Comparison:
    """Put the models of one evaluation beside each other, by the scorers that have a number of each.

    Raises ValueError if the base is missing.
    """
    if base not in measured:
        raise ValueError(f"there are no pictures of the base {base!r} among {sorted(measured)}; changes are counted from it")
    left_out = {name: reason for one in measured.values() for name, reason in one.left_out.items()}
    found = {name: scores(one, None if name == base else measured[base]) for name, one in measured.items()}
    labels = {name: one.labels for name, one in measured.items() if one.labels is not None}
    return Comparison(base, tuple(scorer for scorer in scorers if scorer.name not in left_out), found, labels, left_out)

"""The points of a sweep: which exist, their labels, and the configuration of each. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cpo_ray.config import Config, validated
from cpo_ray.config.sweep.axis import ALIASES, Axis, Value, symbols
from cpo_ray.config.sweep.searched import Point, applicable, choices, end_points, value_at, with_values


class SearchSpace:
    """The axes of a configuration's sweep, and the points in them.

    A point has a value for every axis that its own objective has a setting for. If the objective itself is searched, some
    objectives may lack settings; their trials then differ in the others only.
    """

    def __init__(self, config: Config) -> None:
        assert config.sweep is not None
        self.axes: Mapping[str, Axis] = config.sweep.space
        self._tree = _tree(config)
        self._choices = choices(Config, self._tree, self.axes)

    def point(self, values: Mapping[str, Value]) -> Point:
        """Return values of all axes, without those that their objective has no setting for."""
        return applicable(Config, self._tree, values) if self._choices else dict(values)

    def ends(self) -> list[Point]:
        """Return points at which each axis is at each of its ends once, for every combination of choices."""
        found = {trial_id(point): point for _, point in end_points(Config, self._tree, self.axes)}
        return list(found.values())

    def largest(self) -> list[Point]:
        """Return the points with the largest numbers, one for every combination of texts, true and false."""
        highest = {name: (axis.largest,) if axis.numbers else axis.ends for name, axis in self.axes.items()}
        return list(self._combinations(highest))

    def grid(self) -> Iterator[Point]:
        """Yield every combination of listed values once. The first axis varies slowest."""
        return self._combinations({name: axis.values for name, axis in self.axes.items()})

    def random(self, seed: int) -> Iterator[Point]:
        """Yield draws without repetition. They end when lists of values have no further combination."""
        generator = np.random.default_rng(seed)
        seen: set[str] = set()
        left = self._count()
        while left > len(seen):
            point = self.point({name: _draw(axis, generator) for name, axis in self.axes.items()})
            if trial_id(point) not in seen:
                seen.add(trial_id(point))
                yield point

    def _combinations(self, values: Mapping[str, tuple[Value, ...]]) -> Iterator[Point]:
        seen: set[str] = set()
        for chosen in itertools.product(*values.values()):
            point = self.point(dict(zip(values, chosen, strict=True)))
            if trial_id(point) not in seen:
                seen.add(trial_id(point))
                yield point

    def _count(self) -> float:
        """Return how many points there are; infinitely many where a range is searched."""
        if not all(axis.values for axis in self.axes.values()):
            return math.inf
        starts = self._combinations(
            {name: axis.values if name in self._choices else axis.values[:1] for name, axis in self.axes.items()}
        )
        sizes = {name: len(axis.values) for name, axis in self.axes.items() if name not in self._choices}
        return sum(math.prod(size for name, size in sizes.items() if name in start) for start in starts)


def listed_points(config: Config) -> list[Point]:
    """Return the points of a grid or a random search, in order; other searches decide as they go.

    The same settings give the same points, so a resumed sweep knows which are left.
    """
    sweep, space = config.sweep, SearchSpace(config)
    assert sweep is not None and sweep.search in ("grid", "random"), "other searches have no list of points"
    points = space.grid() if sweep.search == "grid" else space.random(config.run.seed)
    return list(itertools.islice(points, sweep.trials))


def _draw(axis: Axis, generator: np.random.Generator) -> Value:
    if axis.values:
        return axis.values[int(generator.integers(len(axis.values)))]
    low, high = axis.least, axis.largest
    if isinstance(low, int) and isinstance(high, int):
        # Each integer has the share of magnitude up to the next one.
        return (
            min(high, int(math.exp(generator.uniform(math.log(low), math.log(high + 1)))))
            if axis.log
            else int(generator.integers(low, high, endpoint=True))
        )
    if axis.log:
        return math.exp(generator.uniform(math.log(low), math.log(high)))
    return float(generator.uniform(low, high))


def trial_id(point: Mapping[str, Value]) -> str:
    """Return eight hexadecimal digits that name a point's folder. Equal points are one trial."""
    return hashlib.blake2b(json.dumps(dict(sorted(point.items()))).encode(), digest_size=4).hexdigest()


def label(point: Mapping[str, Value]) -> str:
    """Return the point for people, such as "ω 2, β 1000"."""
    return ", ".join(f"{symbol} {value_text(point[name])}" for name, symbol in symbols(point).items())


def value_text(value: Value) -> str:
    """Return four digits, without an exponent for thousands."""
    if isinstance(value, str | bool):
        return str(value).lower() if isinstance(value, bool) else value
    return f"{value:.0f}" if 1000 <= value < 1e7 else f"{value:.4g}"


def point_config(config: Config, point: Mapping[str, Value]) -> Config:
    """Return the point as a run of its own: the configuration with the point's values and without the sweep.

    Raises ConfigError if the values do not go together.
    """
    return validated(Config, with_values(Config, _tree(config), point), label(point))


def parameters(config: Config, searched: Iterable[str]) -> Point:
    """Return what a trial was trained with: the settings with a short name, and the other searched ones."""
    single = [name for name, alias in ALIASES.items() if len(alias.keys) == 1]
    tree = _tree(config)
    found = {name: value_at(tree, name) for name in (*single, *(name for name in searched if name not in ALIASES))}
    return {name: value for name, value in found.items() if value is not None}


def _tree(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True, exclude={"sweep"})


def rung_steps(steps: int, rungs: int) -> tuple[int, tuple[int, ...]]:
    """Return (steps between two rungs, finished steps at each): evenly spaced, the last at the end, at most `rungs` of them."""
    every = math.ceil(steps / rungs)
    return every, (*range(every, steps, every), steps)

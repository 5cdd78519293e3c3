"""The points of a sweep: which there are, what they are called, and the configuration that each of them stands for. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cpo_ray.config import Config
from cpo_ray.config.sweep import Axis, Space, Sweep

#: What a trial differs in: the searched names of `settings.Space` and their values.
Point = dict[str, float | str]

_SHORT = {"omega": "ω", "omega_win": "ω_w", "omega_lose": "ω_l", "beta": "β", "learning_rate": "rate", "proportion": "share"}


def listed_points(sweep: Sweep, seed: int) -> list[Point]:
    """The points of a grid or a random search, in their order; other searches decide as they go.

    The same settings give the same points, so a resumed sweep knows which of them are left.
    """
    assert sweep.search in ("grid", "random"), f"search {sweep.search!r} has no list of points"
    points = _grid(sweep.space) if sweep.search == "grid" else _random(sweep.space, seed)
    return list(itertools.islice(points, sweep.trials))


def _grid(space: Space) -> Iterator[Point]:
    """Every combination; the first axis varies slowest."""
    choices = {name: axis.values for name, axis in space.axes.items()} | (
        {"objective": space.objective} if space.objective else {}
    )
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def _random(space: Space, seed: int) -> Iterator[Point]:
    """Draws without repetition; it ends where lists of values have no further combination."""
    generator = np.random.default_rng(seed)
    finite = all(axis.values for axis in space.axes.values())
    left = math.prod(len(axis.values) for axis in space.axes.values()) * max(1, len(space.objective)) if finite else math.inf
    seen: set[str] = set()
    while left > len(seen):
        point: Point = {name: _draw(axis, generator) for name, axis in space.axes.items()}
        if space.objective:
            point["objective"] = space.objective[int(generator.integers(len(space.objective)))]
        if trial_id(point) not in seen:
            seen.add(trial_id(point))
            yield point


def _draw(axis: Axis, generator: np.random.Generator) -> float:
    if axis.values:
        return axis.values[int(generator.integers(len(axis.values)))]
    if axis.log:
        return math.exp(generator.uniform(math.log(axis.least), math.log(axis.largest)))
    return float(generator.uniform(axis.least, axis.largest))


def trial_id(point: Mapping[str, float | str]) -> str:
    """Eight hexadecimal digits that name a point's folder; equal points are one trial."""
    return hashlib.blake2b(json.dumps(dict(sorted(point.items()))).encode(), digest_size=4).hexdigest()


def label(point: Mapping[str, float | str]) -> str:
    """The point for people, such as "ω 2, β 1000"."""
    return ", ".join(f"{_SHORT.get(name, name)} {_text(value)}" for name, value in point.items())


def _text(value: float | str) -> str:
    """Four digits, and no exponent for thousands."""
    return value if isinstance(value, str) else f"{value:.0f}" if 1000 <= value < 1e7 else f"{value:.4g}"


def point_config(config: Config, point: Mapping[str, float | str]) -> Config:
    """The configuration with the point's values in it. Raises a pydantic ValidationError for a value outside its bounds."""
    values: dict[str, Any] = dict(point)
    tree = config.model_dump()
    objective, optimization = tree["preference"]["objective"], tree["preference"]["optimization"]
    if "omega" in values:
        objective["omega_win"] = objective["omega_lose"] = values.pop("omega")
    if "objective" in values:
        objective["name"] = values.pop("objective")
    if "learning_rate" in values:
        optimization["learning_rate"] = values.pop("learning_rate")
    if "proportion" in values:
        tree["data"]["proportion"] = values.pop("proportion")
    objective.update(values)
    return Config.model_validate(tree)


def parameters(config: Config) -> Point:
    """All that a sweep can search, as a configuration has it: what a trial was trained with, searched or not."""
    told = config.preference.objective.model_dump()
    return {
        **{name: told[name] for name in ("omega_win", "omega_lose", "beta") if name in told},
        "learning_rate": config.preference.optimization.learning_rate,
        "objective": told["name"],
        "proportion": config.data.proportion,
    }


def rung_steps(steps: int, rungs: int) -> tuple[int, tuple[int, ...]]:
    """(steps between two looks, finished steps at each): evenly spaced, the last at the end, at most `rungs` of them."""
    every = math.ceil(steps / rungs)
    return every, (*range(every, steps, every), steps)

"""How the limits of the measuring agent were found: `python -m cpo_ray.toy.calibrate`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpo_ray.toy.agent import LIMITS, measure
from cpo_ray.toy.render import ATTRIBUTES, THIRDS, render, sample_scene


def calibrate(seed: int, count: int) -> dict[str, float]:
    """Print and return, per attribute, the limit in the middle of the range that parts `count` renders with the fewest errors."""
    generator = np.random.default_rng(seed)
    good: dict[str, list[float]] = {a: [] for a in ATTRIBUTES}
    bad: dict[str, list[float]] = {a: [] for a in ATTRIBUTES}
    for scene in (sample_scene(generator) for _ in range(count)):
        scalars = measure(render(scene), scene.content.prompt).scalars
        for attribute in scene.applicable():
            if attribute in scalars:
                (bad if attribute in scene.negative else good)[attribute].append(scalars[attribute])
        if THIRDS in scalars and not scene.cropped and not scene.thirds:
            bad[THIRDS].append(scalars[THIRDS])
    limits = {}
    print(f"{'attribute':<24}{'good 1 %':>9}{'50 %':>8}{'99 %':>8}{'bad 1 %':>9}{'50 %':>8}{'99 %':>8}{'limit':>8}{'errors':>8}")
    for attribute in ATTRIBUTES:
        sides = np.array(good[attribute]), np.array(bad[attribute])
        limits[attribute], errors = best_limit(*sides, LIMITS[attribute].negative_above)
        shares = [q for side in sides for q in np.percentile(side, (1, 50, 99))]
        row = "".join(f"{q:>{w}.3f}" for q, w in zip(shares, (9, 8, 8, 9, 8, 8), strict=True))
        print(f"{attribute:<24}{row}{limits[attribute]:>8.3f}{errors:>8.3f}")
    return limits


def best_limit(good: NDArray[np.float64], bad: NDArray[np.float64], negative_above: bool) -> tuple[float, float]:
    """The middle of the widest range of limits with the least mean of both error rates, and that mean."""
    sign = 1.0 if negative_above else -1.0
    values = np.unique(np.concatenate([good, bad]) * sign)
    middles = (values[1:] + values[:-1]) / 2
    good_errors = 1 - np.searchsorted(np.sort(good * sign), middles) / good.size
    bad_errors = np.searchsorted(np.sort(bad * sign), middles) / bad.size
    errors = (good_errors + bad_errors) / 2
    best = np.flatnonzero(errors == errors.min())
    widest = best[np.diff(values)[best].argmax()]
    return float(sign * middles[widest]), float(errors.min())


if __name__ == "__main__":
    calibrate(seed=1, count=3000)

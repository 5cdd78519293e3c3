"""How the limits of the measuring agent were found: `python -m cpo_ray.toy.calibrate`."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cpo_ray.toy.agent import LIMITS, measure
from cpo_ray.toy.render import ATTRIBUTES, THIRDS, Image, render, sample_scene
from cpo_ray.toy.segmentation import Array


def degrade(picture: Image, generator: np.random.Generator, blur: float = 0.6, noise: float = 0.02) -> Image:
    """A picture (64, 64, 3) uint8, blurred (sigma in pixels) and noised as by an autoencoder's round trip."""
    soft = ndimage.gaussian_filter(picture / 255.0, (blur, blur, 0))
    soft += generator.normal(0, noise, picture.shape)
    return (np.clip(soft, 0, 1) * 255 + 0.5).astype(np.uint8)


def calibrate(seed: int, count: int) -> dict[str, float]:
    """Print and return, per attribute, the limit that parts `count` renders with the fewest errors.

    Every second render is degraded, since the agent also reads pictures that come out of an autoencoder.
    """
    generator = np.random.default_rng(seed)
    good: dict[str, list[float]] = {a: [] for a in ATTRIBUTES}
    bad: dict[str, list[float]] = {a: [] for a in ATTRIBUTES}
    for turn in range(count):
        scene = sample_scene(generator)
        picture = degrade(render(scene), generator) if turn % 2 else render(scene)
        scalars = measure(picture, scene.content.prompt).scalars
        for attribute in scene.applicable():
            if attribute in scalars:
                (bad if attribute in scene.negative else good)[attribute].append(scalars[attribute])
        if THIRDS in scalars and not scene.cropped and not scene.thirds:
            bad[THIRDS].append(scalars[THIRDS])
    limits = {}
    heads = ("good 1 %", "50 %", "99 %", "bad 1 %", "50 %", "99 %", "limit", "errors")
    print(f"{'attribute':<24}" + "".join(f"{head:>9}" for head in heads))
    for attribute in ATTRIBUTES:
        sides = np.array(good[attribute]), np.array(bad[attribute])
        limits[attribute], errors = best_limit(*sides, LIMITS[attribute].negative_above)
        shares = [share for side in sides for share in np.percentile(side, (1, 50, 99))]
        numbers = [*shares, limits[attribute], errors]
        print(f"{attribute:<24}" + "".join(f"{number:>9.3f}" for number in numbers))
    return limits


def best_limit(good: Array, bad: Array, negative_above: bool) -> tuple[float, float]:
    """The middle of the widest gap at which the mean of both error rates is least, and that mean."""
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

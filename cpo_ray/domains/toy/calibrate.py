"""Find the limits of the measuring agent: `python -m cpo_ray.domains.toy.calibrate`."""

from __future__ import annotations

import numpy as np
import torch

from cpo_ray.config import Model
from cpo_ray.domains.toy.agent import LIMITS, measure
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.domains.toy.judge import to_tensor
from cpo_ray.domains.toy.render import ATTRIBUTES, SIZE, THIRDS, Image, render, sample_scene
from cpo_ray.domains.toy.segmentation import Array
from cpo_ray.models import family


@torch.no_grad()
def round_trip(pictures: list[Image]) -> list[Image]:
    """Return pictures after a pass through the shipped autoencoder."""
    model = Model(family="sdxl", base=str(ToyDomain.base), resolution=SIZE)
    vae = family(model).load_pipeline(model).vae
    decoded = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in to_tensor(pictures).split(64)]
    values = (torch.cat(decoded).clamp(-1, 1) + 1) * 127.5
    return list(values.round().byte().permute(0, 2, 3, 1).numpy())


def calibrate(seed: int, count: int) -> dict[str, float]:
    """Print and return, per attribute, the limit that separates `count` renders with the fewest errors.

    Every second render passes through the shipped autoencoder, as every generated picture does: it softens edges and specks.
    """
    generator = np.random.default_rng(seed)
    scenes = [sample_scene(generator) for _ in range(count)]
    pictures = [render(scene) for scene in scenes]
    pictures[1::2] = round_trip(pictures[1::2])
    good: dict[str, list[float]] = {a: [] for a in ATTRIBUTES}
    bad: dict[str, list[float]] = {a: [] for a in ATTRIBUTES}
    for scene, picture in zip(scenes, pictures, strict=True):
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
    """Return the middle of the widest gap with the least mean of both error rates, and that mean."""
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
    calibrate(seed=1, count=2000)

"""The pretraining data of the embedded domain's assets: mixed renders with captions like those of the web."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch import Tensor

from cpo_ray.domains.toy.render import CONTENTS, Scene, render, sample_scene
from cpo_ray.hierarchy import Hierarchy

# Seeds of the pretraining renders; the demonstration's data sets use other ones.
RENDER_SEED = 7_000_000


def _render_block(block: int, count: int) -> tuple[np.ndarray, list[Scene]]:
    generator = np.random.default_rng(RENDER_SEED + block)
    scenes = [sample_scene(generator, generator.uniform(0.2, 0.8)) for _ in range(count)]
    return np.stack([render(s) for s in scenes]), scenes


def render_corpus(count: int, workers: int = 2) -> tuple[Tensor, list[Scene]]:
    """Draw `count` mixed pictures: (N, 3, 64, 64) uint8 and their scenes, a pure function of the count."""
    blocks = count // 1000
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_render_block, range(blocks), [1000] * blocks))
    pictures = torch.from_numpy(np.concatenate([p for p, _ in parts])).permute(0, 3, 1, 2).contiguous()
    return pictures, [s for _, scenes in parts for s in scenes]


def caption(scene: Scene, tree: Hierarchy, generator: np.random.Generator) -> str:
    """A web-like caption: nothing (10 %), the content (50 %), the content with some attributes (35 %), attributes alone (5 %)."""
    kind = generator.random()
    if kind < 0.10:
        return ""
    if kind < 0.60:
        return scene.content.prompt
    named = [tree.phrase("+" + a) for a in scene.positive_ids] + [tree.phrase("-" + a) for a in scene.negative_ids]
    kept = [p for p in named if generator.random() < 0.6]
    generator.shuffle(kept)
    return ", ".join(kept if kind > 0.95 and kept else [scene.content.prompt, *kept])


def corpus_texts(tree: Hierarchy) -> list[str]:
    """Every word of the domain, for the tokenizer."""
    poles = [p.phrase for a in tree.attributes.values() for p in (a.positive, a.negative) if p is not None]
    return [c.prompt for c in CONTENTS] + [", ".join(poles)]


def batches(total: int, size: int, steps: int, seed: int) -> list[Tensor]:
    """Index batches of `steps` steps, epoch after epoch, each epoch shuffled by its own seed."""
    per_epoch = total // size
    orders: dict[int, Tensor] = {}
    out = []
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if epoch not in orders:
            orders[epoch] = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(total))
        out.append(orders[epoch][place * size : (place + 1) * size])
    return out

"""The embedded domain as evaluation sees it: the measuring agent for attributes, the judge for content and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cpo_ray.core.prompts import Labels
from cpo_ray.domains.toy.agent import Measurement, MeasuringAgent
from cpo_ray.domains.toy.judge import Judge, content_hits, load_judge, to_tensor
from cpo_ray.domains.toy.render import BY_PROMPT, Image, Scene, contents_of, render

REFERENCE_SEED = 5_000_000
BLOCK = 256


class ToyDomain:
    """`cpo_ray.evaluation.measure.Domain` of the embedded pictures; without a judge, the shipped one."""

    def __init__(self, judge: Judge | None = None, reference_pictures: int = 2_400) -> None:
        self.judge = load_judge() if judge is None else judge
        self.reference_pictures = reference_pictures

    def annotate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[Measurement]:
        return MeasuringAgent().annotate(pictures, prompts)

    def content_hits(self, pictures: Sequence[Image], prompts: Sequence[str]) -> NDArray[np.bool_]:
        """Return (N,) booleans: are shape, color and ground all recognised as the prompt asks?"""
        parts = [content_hits(self.judge, list(pictures[b]), list(prompts[b])).all(1) for b in _blocks(len(pictures))]
        return np.concatenate(parts)

    @torch.no_grad()
    def features(self, pictures: Sequence[Image]) -> NDArray[np.float64]:
        """Return (N, 64), the judge's last hidden layer."""
        parts = [self.judge.features(to_tensor(list(pictures[b]))).double().numpy() for b in _blocks(len(pictures))]
        return np.concatenate(parts)

    def good_features(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return the features of renders without a fault that show the same contents in the same shares, so that the distance is
        about quality alone.
        """
        return self.features(good_pictures(prompts, REFERENCE_SEED, self.reference_pictures))

    @staticmethod
    def requests(split: str) -> list[Labels]:
        """Return every content of a split with everything that is good about it, placed in the centre."""
        scenes = (Scene(content, frozenset(), thirds=False, seed=0) for content in contents_of(split))
        return [Labels(scene.content.prompt, scene.positive_ids, ()) for scene in scenes]


def good_pictures(prompts: Sequence[str], seed: int, count: int) -> list[Image]:
    """`count` renders without any negative attribute, the prompts in turn, central and thirds placement alike often."""
    rounds = (divmod(i, len(prompts)) for i in range(count))
    contents = ((BY_PROMPT[prompts[place]], bool(turn % 2)) for turn, place in rounds)
    return [render(Scene(content, frozenset(), thirds, seed + i)) for i, (content, thirds) in enumerate(contents)]


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))

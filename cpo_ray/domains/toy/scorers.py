"""The embedded domain's judge as scorers: do pictures show what was asked for, and how far are they from good ones?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from cpo_ray.core.statistics import Interval, frechet_interval
from cpo_ray.domains.toy.judge import Judge, content_hits, load_judge, to_tensor
from cpo_ray.domains.toy.render import BY_PROMPT, Image, Scene, render
from cpo_ray.evaluation.scorers.base import Drawn, PictureScorer, SetScorer

REFERENCE_SEED = 5_000_000
REFERENCE_PICTURES = 2_400
BLOCK = 256


class ShowsContent(PictureScorer):
    """1 if shape, colour and ground are all recognised as the prompt asks, else 0."""

    name = "content"
    title = "content"
    better = "higher"
    meaning = "the share of pictures that show what was asked for"
    decimals = 3
    with_interval = False

    def score(self, drawn: Drawn) -> NDArray[np.float64]:
        """(N,) 0 or 1."""
        return np.asarray(recognised(drawn.pictures, drawn.prompts).all(1), dtype=np.float64)


class DistanceToGood(SetScorer):
    """Squared Fréchet distance to renders without a fault that show the same contents in the same shares."""

    name = "distance"
    title = "distance"
    better = "lower"
    meaning = "squared Fréchet distance to good pictures"
    caution = "Fréchet distances depend on the number of pictures, so compare them within this report only."

    def distance(self, drawn: Drawn) -> Interval:
        """Return the distance in the judge's last hidden layer. The contents are the same, so it is about quality alone."""
        return frechet_interval(features(_judge(), drawn.pictures), _good_features(tuple(drawn.prompts)))


def recognised(pictures: Sequence[Image], prompts: Sequence[str]) -> NDArray[np.bool_]:
    """Return (N, 3): does the judge recognise the shape, the color and the ground that each prompt asks for?"""
    return np.concatenate([content_hits(_judge(), list(pictures[b]), list(prompts[b])) for b in _blocks(len(pictures))])


@torch.no_grad()
def features(judge: Judge, pictures: Sequence[Image]) -> NDArray[np.float64]:
    """Return (N, 64), the judge's last hidden layer."""
    parts = [judge.features(to_tensor(list(pictures[b]))).double().numpy() for b in _blocks(len(pictures))]
    return np.concatenate(parts)


def good_pictures(prompts: Sequence[str], seed: int, count: int) -> list[Image]:
    """Return `count` renders without any negative attribute, the prompts in turn, with central and thirds placement equally
    often.
    """
    rounds = (divmod(i, len(prompts)) for i in range(count))
    contents = ((BY_PROMPT[prompts[place]], bool(turn % 2)) for turn, place in rounds)
    return [render(Scene(content, frozenset(), thirds, seed + i)) for i, (content, thirds) in enumerate(contents)]


@lru_cache(maxsize=1)
def _judge() -> Judge:
    return load_judge()


@lru_cache(maxsize=4)
def _good_features(prompts: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the features of good pictures; they are the same for all models with these prompts."""
    return features(_judge(), good_pictures(prompts, REFERENCE_SEED, REFERENCE_PICTURES))


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))

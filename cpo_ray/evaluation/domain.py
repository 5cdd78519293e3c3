"""The door to a domain: what is asked for, how labels are read from pictures, and what else is scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpo_ray.config import Config, ConfigError
from cpo_ray.config.registry import DOMAINS
from cpo_ray.core.prompts import Labels
from cpo_ray.core.splits import Split
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import Hierarchy

Picture = NDArray[np.uint8]
"""(H, W, 3), sRGB."""


class Domain:
    """A world that pictures come from. A domain of one's own is a subclass that says how labels are read from pictures."""

    base: str | None = None
    """A base model of its own, as `model.base` takes it. None where users name theirs."""
    scorers: tuple[str, ...] = ("negatives",)
    """What its pictures are scored by where `evaluation.scorers` is empty: registered names, or "module:Class"."""
    reads_labels: bool = True
    """Whether `annotate` can read labels from pictures. Without it no #A_neg, no gate and no choice by either is possible."""

    def requests(self, split: Split, dataset: AnnotatedDataset) -> list[Labels]:
        """What is asked for: prompts that belong to a split, each with the attributes that its picture should have.

        Here they are those of the data set's pictures; of all of them where the split is empty.
        """
        return [dataset.labels(name) for name in dataset.split(split) or dataset.ids]

    def annotate(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> Sequence[Labels]:
        """The attributes found in each picture, read from the picture. The prompt tells which ones apply."""
        raise NotImplementedError(f"{type(self).__name__} says that it reads labels, and has no annotate()")

    def make_data(self, folder: Path, count: int, seed: int, tree: Hierarchy) -> AnnotatedDataset:
        """Draw so many annotated pictures of its own into `folder`. Raises ConfigError where the domain has none of its own."""
        raise ConfigError(f"domain.pictures is {count}, and this domain draws none of its own; set it to 0 and import pictures")

    def draw_pictures(self, folder: Path, count: int, seed: int) -> None:
        """Draw so many pictures with a metadata.jsonl of their prompts into `folder`, for annotation. Raises ConfigError."""
        raise ConfigError(f"{type(self).__name__} draws no pictures of its own; name a folder that holds some")


class NoDomain(Domain):
    """Pictures of any kind, which nobody here can read labels from."""

    scorers = ()
    reads_labels = False


def open_domain(config: Config) -> Domain:
    """The domain that the configuration names. Raises ConfigError for an unknown one."""
    return domain_named(config.domain.use)


def domain_named(name: str) -> Domain:
    """A domain by its registered name or as "module:Class". Raises ConfigError for an unknown one, and for no domain."""
    found = DOMAINS.load(name)
    if not (isinstance(found, type) and issubclass(found, Domain)):
        raise ConfigError(f"domain {name!r} is not a subclass of cpo_ray.evaluation.domain.Domain")
    return found()

"""The door to a domain: what is asked for, how labels are read from pictures, and what else is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cpo_ray.config import ConfigError
from cpo_ray.config.domain import DomainSettings
from cpo_ray.config.registry import DOMAINS
from cpo_ray.core.prompts import Labels
from cpo_ray.core.splits import Split
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import Hierarchy

Picture = NDArray[np.uint8]
"""(H, W, 3), sRGB."""


class Domain:
    """A world that pictures come from. A domain of one's own is a subclass that says how labels are read from pictures.

    It is made with the section that `settings` has read and the tree of attributes, wherever labels are read: in the driver and,
    for a sweep, in each of the actors that measure.
    """

    settings: ClassVar[type[DomainSettings]] = DomainSettings
    """What it can be told. The class is imported wherever a configuration is read, so import what is heavy when it is needed."""
    base: ClassVar[str | None] = None
    """A base model of its own, as `model.base` takes it. None where users name theirs."""
    scorers: ClassVar[tuple[str, ...]] = ("negatives",)
    """What its pictures are scored by where `evaluation.scorers` is empty: registered names, or "module:Class"."""
    reads_labels: ClassVar[bool] = True
    """Whether `annotate` can read labels from pictures. Without it no #A_neg, no gate and no choice by either is possible."""
    own_pictures: ClassVar[bool] = False
    """Whether it can draw pictures of its own, by `make_data` and `draw_pictures`, for `domain.pictures`."""

    def __init__(self, settings: DomainSettings, tree: Hierarchy) -> None:
        self.tree = tree

    def requests(self, split: Split, dataset: AnnotatedDataset) -> list[Labels]:
        """Return what is asked for: prompts that belong to a split, each with the attributes that its picture should have.

        Here they are those of the data set's pictures.
        """
        return requests_of(dataset, split)

    def annotate(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> Sequence[Labels | None]:
        """The attributes found in each picture, read from the picture. The prompt tells which ones apply.

        None stands for a picture whose labels cannot be had. It has no number in any table, which then says so.
        """
        raise NotImplementedError

    def lacks(self) -> str | None:
        """Return what keeps it from reading labels here, in a sentence for `--check`; None if nothing is known to."""
        return None

    def cost(self, prompts: Mapping[str, int]) -> str | None:
        """Return what it takes to read and score so many pictures of each prompt, in a sentence for `--check`; None if little."""
        return None

    def make_data(self, folder: Path, count: int, seed: int) -> AnnotatedDataset:
        """Draw so many annotated pictures into `folder`, or find them there."""
        raise NotImplementedError

    def draw_pictures(self, folder: Path, count: int, seed: int) -> None:
        """Draw so many pictures into `folder`, with a metadata.jsonl of their prompts, for annotation."""
        raise NotImplementedError


class NoDomain(Domain):
    """Pictures of any kind, which nobody here can read labels from."""

    scorers = ()
    reads_labels = False


def domain_class(settings: DomainSettings) -> type[Domain]:
    """The class of a domain. Raises ConfigError for what is no domain, and for one that lacks what it says it can do."""
    found = DOMAINS.load(settings.use)
    if not (isinstance(found, type) and issubclass(found, Domain)):
        raise ConfigError(f"domain.use is {settings.use!r}, which is not a subclass of {__name__}.Domain")
    needed = {"annotate": "reads_labels", "make_data": "own_pictures", "draw_pictures": "own_pictures"}
    for method, said in needed.items():
        if getattr(found, said) and getattr(found, method) is getattr(Domain, method):
            raise ConfigError(f"the domain {settings.use!r} has no {method}(); write it, or set its {said} = False")
    return found


def open_domain(settings: DomainSettings, tree: Hierarchy) -> Domain:
    """The chosen domain. Raises ConfigError as `domain_class` does."""
    return domain_class(settings)(settings, tree)


def requests_of(dataset: AnnotatedDataset, split: Split) -> list[Labels]:
    """The labels of a split's pictures, as requests for others like them; of all pictures if the split is empty."""
    return [dataset.labels(name) for name in dataset.split(split) or dataset.ids]

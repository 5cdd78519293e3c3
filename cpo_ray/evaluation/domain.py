"""The door to a domain: what is asked for, how labels are read from pictures, and what else is scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cpo_ray.core.plan import Split
from cpo_ray.core.prompts import Labels
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import Hierarchy

Picture = NDArray[np.uint8]
"""(H, W, 3), sRGB."""


class Domain(Protocol):
    """A world that pictures come from. `BasicDomain` has all of it but `annotate`, for whoever writes their own."""

    name: str
    base: str | None
    """A base model of its own, as `model.base` takes it; None where users name theirs."""
    scorers: tuple[str, ...]
    """What its pictures are scored by where `evaluation.scorers` says nothing: registered names, or "module:name"."""

    def requests(self, split: Split, dataset: AnnotatedDataset) -> list[Labels]:
        """What is asked for: prompts that belong to a split, each with the attributes that its picture should have."""

    def annotate(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> Sequence[Labels]:
        """The attributes found in each picture, read from the picture; the prompt tells which ones apply."""

    def make_data(self, folder: Path, count: int, seed: int, tree: Hierarchy) -> AnnotatedDataset:
        """So many annotated pictures of its own in `folder`. Raises ConfigError where the domain has none of its own."""

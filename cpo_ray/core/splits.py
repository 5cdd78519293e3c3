"""Which samples a model is trained on, chosen by, and tested on."""

from __future__ import annotations

import math
from typing import Literal

from cpo_ray.core.randomness import hash_fraction

Split = Literal["train", "validation", "test"]


def split_of(sample_id: str, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> Split:
    """Return the split of a sample, by the hash of its id alone, so that it stays when other samples come or go.

    `fractions` are those of train, validation and test. Raises ValueError if they are negative or do not sum to 1.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1.0):
        raise ValueError(f"split fractions are {fractions}; give three numbers of at least 0 that sum to 1")
    # The prefix keeps the split independent of other uses of hash_fraction on the same id.
    position = hash_fraction(f"split/{sample_id}")
    if position < fractions[0]:
        return "train"
    return "validation" if position < fractions[0] + fractions[1] else "test"


def in_training(sample_id: str, proportion: float = 1.0, published: Split | None = None) -> bool:
    """Return whether a sample is trained on. A smaller proportion of the training split is a part of every larger one.

    `published` is the split that its source has put it into, which counts instead of the hash.
    """
    return (published or split_of(sample_id)) == "train" and hash_fraction(f"proportion/{sample_id}") < proportion

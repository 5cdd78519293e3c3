"""#A_neg, the paper's main number (CPO, 6.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpo_ray.evaluation.scorers.base import Drawn, PictureScorer


class Negatives(PictureScorer):
    """How many negative attributes are found in a picture."""

    name = "negatives"
    title = "#A_neg"
    better = "lower"
    meaning = "the mean number of negative attributes found in a picture"
    caution = (
        "The number of negatives alone can be fooled: a picture whose subject has dissolved may show few of them. "
        "Read it together with scores of content and of quality, which must not get worse for it."
    )
    needs_labels = True
    decimals = 2
    with_change = True

    def score(self, drawn: Drawn) -> NDArray[np.float64]:
        """(N,) counts; NaN where the labels could not be read."""
        assert drawn.labels is not None, "open_scorers refuses it where nobody reads labels"
        return np.array([np.nan if labels is None else len(labels.negative_ids) for labels in drawn.labels], dtype=np.float64)

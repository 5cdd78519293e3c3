"""A scorer of one's own: how bright pictures are. Copy this file to begin with yours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpo_ray.evaluation.scorers.base import Drawn, PictureScorer


class Brightness(PictureScorer):
    """`evaluation.scorers = ["outside.scorer:Brightness"]`"""

    name = "brightness"
    title = "brightness"
    better = "higher"
    meaning = "mean brightness of a picture, 0 for black and 1 for white"
    decimals = 3
    with_change = True

    def score(self, drawn: Drawn) -> NDArray[np.float64]:
        """(N,) numbers from 0 to 1."""
        return np.array([picture.mean() / 255 for picture in drawn.pictures])

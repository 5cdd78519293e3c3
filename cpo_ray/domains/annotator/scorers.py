"""What the annotator says beside attributes: do pictures show what was asked for?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpo_ray.domains.annotator.domain import AnnotatorDomain
from cpo_ray.evaluation.scorers.base import Drawn, PictureScorer


class ShowsPrompt(PictureScorer):
    """1 if the annotator finds everything in the picture that the prompt names, else 0."""

    name = "content"
    title = "content"
    better = "higher"
    meaning = "the share of pictures that show everything that the prompt names, as the annotator says"
    caution = "The annotator judges content with the same errors for every model, and sees what it is told to look for."
    decimals = 3
    with_change = True
    asks = AnnotatorDomain

    def score(self, drawn: Drawn) -> NDArray[np.float64]:
        """(N,) 0 or 1; NaN where the annotator does not say."""
        assert isinstance(drawn.domain, AnnotatorDomain), "open_scorers refuses it elsewhere"
        return drawn.domain.shows(drawn.pictures, drawn.prompts)

"""A domain of one's own: photographs whose exposure is read from their pixels. Copy this file to begin with yours."""

from __future__ import annotations

from collections.abc import Sequence

from cpo_ray.core.prompts import Labels
from cpo_ray.evaluation.domain import Domain, Picture

DARK = 60


class Photographs(Domain):
    """`[domain] use = "outside.domain:Photographs"`; the tree must have the attribute light.contrast."""

    scorers = ("negatives", "support.outside.scorer:Brightness")

    def annotate(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[Labels]:
        """A picture is good where it is not too dark."""
        dark = [picture.mean() < DARK for picture in pictures]
        ids = ("light.contrast",)
        return [
            Labels(prompt, () if is_dark else ids, ids if is_dark else ()) for prompt, is_dark in zip(prompts, dark, strict=True)
        ]

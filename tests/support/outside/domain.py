"""A domain of one's own: photographs whose exposure is read from their pixels. Copy this file to begin with yours."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from cpo_ray.config.domain import DomainSettings
from cpo_ray.core.prompts import Labels
from cpo_ray.evaluation.domain import Domain, Picture
from cpo_ray.hierarchy import Hierarchy


class PhotographSettings(DomainSettings):
    """What no domain of the package is told."""

    dark: int = Field(default=60, ge=0, le=255)
    """Mean brightness below which a photograph is too dark."""


class Photographs(Domain):
    """`[domain] use = "support.outside.domain:Photographs"`; the tree must have the attribute light.contrast."""

    settings = PhotographSettings
    scorers = ("negatives", "support.outside.scorer:Brightness")

    def __init__(self, settings: PhotographSettings, tree: Hierarchy) -> None:
        super().__init__(settings, tree)
        self._dark, self._ids = settings.dark, (tree.attribute("light.contrast").id,)

    def annotate(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[Labels]:
        """A picture is good where it is not too dark."""
        dark = [picture.mean() < self._dark for picture in pictures]
        return [
            Labels(prompt, () if is_dark else self._ids, self._ids if is_dark else ())
            for prompt, is_dark in zip(prompts, dark, strict=True)
        ]

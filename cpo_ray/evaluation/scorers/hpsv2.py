"""HPSv2 (Wu et al. 2023, arXiv:2306.09341), trained on what annotators preferred among generated pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpo_ray.evaluation.scorers.pickscore import PickScore, PickScoreSettings

if TYPE_CHECKING:
    from cpo_ray.evaluation.scorers.readers.clip import ClipReader


class HPSv2Settings(PickScoreSettings):
    """Version 2.1 in safetensors; its authors publish a pickle, xswu/HPSv2."""

    weights: str = "RE-N-Y/hpsv21"


class HPSv2(PickScore):
    """The same architecture as PickScore, but the whole picture is seen: black fills what is missing to a square."""

    settings = HPSv2Settings
    name = "hpsv2"
    title = "HPSv2"
    meaning = "HPSv2's cosine between a picture and its prompt"
    caution = "Versions 2.0 and 2.1 of HPSv2 have other scales."
    licence = "Apache-2.0"

    def open_reader(self) -> ClipReader:
        """Load the tuned CLIP."""
        reader = super().open_reader()
        reader.fit = "pad"
        return reader

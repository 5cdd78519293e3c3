"""CLIP score (Hessel et al. 2021, arXiv:2104.08718): does a picture show what its prompt says?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpo_ray.config.evaluation import PromptScorerSettings
from cpo_ray.evaluation.scorers.base import ModelPictureScorer

if TYPE_CHECKING:
    from cpo_ray.evaluation.scorers.readers.clip import ClipReader


class ClipSettings(PromptScorerSettings):
    """CLIP's own weights, in the layout of transformers or of open_clip."""

    weights: str = "openai/clip-vit-large-patch14"


class ClipScore(ModelPictureScorer):
    """The cosine between CLIP's vectors of a picture and of its prompt, as it is: neither scaled nor cut off at 0."""

    settings = ClipSettings
    told: ClipSettings
    name = "clip"
    title = "CLIP score"
    meaning = "cosine between CLIP's vectors of a picture and of its prompt"
    caution = "CLIP reads 77 tokens of a prompt. It hardly sees style or faults."
    licence = "MIT"
    size = "1.7 GB"

    def open_reader(self) -> ClipReader:
        """Load CLIP."""
        from cpo_ray.evaluation.scorers.readers.clip import VIT_L, load_clip

        return load_clip(self.told, VIT_L, "openai/clip-vit-large-patch14")

    def published_reader(self) -> ClipReader:
        """ViT-L/14."""
        from cpo_ray.evaluation.scorers.readers.clip import VIT_L, published_clip

        return published_clip(VIT_L)

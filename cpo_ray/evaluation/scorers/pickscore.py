"""PickScore (Kirstain et al. 2023, arXiv:2305.01569), trained on what users of a web page preferred."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpo_ray.config.evaluation import PromptScorerSettings
from cpo_ray.evaluation.scorers.base import ModelPictureScorer

if TYPE_CHECKING:
    from cpo_ray.evaluation.scorers.readers.clip import ClipReader


class PickScoreSettings(PromptScorerSettings):
    """A CLIP ViT-H/14 that was tuned to preferences."""

    weights: str = "yuvalkirstain/PickScore_v1"


class PickScore(ModelPictureScorer):
    """Its cosine, as the paper of CPO reports it (Table 1); others report it times 100."""

    settings = PickScoreSettings
    told: PickScoreSettings
    name = "pickscore"
    title = "PickScore"
    meaning = "PickScore's cosine between a picture and its prompt, without the factor of 100"
    licence = "MIT"
    size = "3.9 GB"

    def open_reader(self) -> ClipReader:
        """Load the tuned CLIP."""
        from cpo_ray.evaluation.scorers.readers.clip import VIT_H, load_clip

        return load_clip(self.told, VIT_H, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")

    def published_reader(self) -> ClipReader:
        """ViT-H/14."""
        from cpo_ray.evaluation.scorers.readers.clip import VIT_H, published_clip

        return published_clip(VIT_H)

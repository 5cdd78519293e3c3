"""ImageReward (Xu et al. 2023, arXiv:2304.05977), trained on experts' rankings of generated pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpo_ray.config.evaluation import PromptScorerSettings
from cpo_ray.evaluation.scorers.base import ModelPictureScorer

if TYPE_CHECKING:
    from cpo_ray.evaluation.scorers.readers.blip import BlipReader


class ImageRewardSettings(PromptScorerSettings):
    """The reward in safetensors; its authors publish a pickle, THUDM/ImageReward."""

    weights: str = "RE-N-Y/ImageReward"


class ImageReward(ModelPictureScorer):
    """BLIP reads the prompt beside the picture, and linear layers make a reward of it."""

    settings = ImageRewardSettings
    told: ImageRewardSettings
    name = "imagereward"
    title = "ImageReward"
    meaning = "ImageReward, in standard deviations above the mean of its training"
    caution = "ImageReward reads 35 tokens of a prompt."
    licence = "Apache-2.0"
    size = "1.8 GB"

    def open_reader(self) -> BlipReader:
        """Load BLIP and the head; a config.json beside the weights may describe another size of it."""
        import torch

        from cpo_ray.evaluation.scorers.readers.base import find_weights, load_into
        from cpo_ray.evaluation.scorers.readers.blip import TEXT, VISION, BlipReader, reward_names
        from cpo_ray.evaluation.scorers.readers.clip import tokenizer_of

        weights = find_weights(self.told)
        given = weights.configuration() or {}
        with torch.device("meta"):
            reader = BlipReader(given.get("vision_config", VISION), given.get("text_config", TEXT))
        load_into(reader, reward_names(weights.tensors(), weights.source), weights.source)
        reader.tokenizer = tokenizer_of(self.told, weights, "google-bert/bert-base-uncased")
        return reader.eval()

    def published_reader(self) -> BlipReader:
        """BLIP with a ViT-L/16."""
        from cpo_ray.evaluation.scorers.readers.blip import TEXT, VISION, BlipReader

        return BlipReader(VISION, TEXT)

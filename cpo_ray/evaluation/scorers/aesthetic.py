"""LAION-Aesthetic, version 2 (Schuhmann et al. 2022, arXiv:2210.08402): how much people like a picture, whatever it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cpo_ray.config.evaluation import ModelScorerSettings
from cpo_ray.evaluation.scorers.base import ModelPictureScorer

if TYPE_CHECKING:
    from cpo_ray.evaluation.scorers.readers.base import Reader


class AestheticSettings(ModelScorerSettings):
    """The head, alone or together with the CLIP that it stands on."""

    places: ClassVar[tuple[str, ...]] = ("weights", "clip")

    weights: str = "RE-N-Y/laion-aesthetic"
    clip: str = "openai/clip-vit-large-patch14"
    """The CLIP below the head, where `weights` hold the head alone."""


class Aesthetic(ModelPictureScorer):
    """Linear layers on CLIP's vector of the picture, brought to length 1."""

    settings = AestheticSettings
    told: AestheticSettings
    name = "aesthetic"
    title = "aesthetic"
    meaning = "LAION-Aesthetic, what people would rate a picture, from 1 to 10"
    decimals = 3
    licence = "Apache-2.0; MIT for the CLIP below"
    size = "4 MB, and 1.7 GB for the CLIP below"
    reads_prompts = False

    def open_reader(self) -> Reader:
        """Load the head and the CLIP."""
        from cpo_ray.evaluation.scorers.readers.base import find_weights, load_into
        from cpo_ray.evaluation.scorers.readers.clip import VIT_L, linear_head, load_clip_pictures

        weights = find_weights(self.told)
        tensors = {name.removeprefix("mlp.layers.").removeprefix("layers."): each for name, each in weights.tensors().items()}
        top = {name: tensors.pop(name) for name in list(tensors) if name[0].isdigit()}
        head = linear_head(len(top["0.weight"][0]) if "0.weight" in top else VIT_L["projection_dim"])
        load_into(head, top, weights.source)
        if not tensors:
            weights = find_weights(self.told.model_copy(update={"weights": self.told.clip, "revision": None}))
            tensors = weights.tensors()
        return load_clip_pictures(tensors, weights, VIT_L, head)

    def published_reader(self) -> Reader:
        """The head on ViT-L/14."""
        from cpo_ray.evaluation.scorers.readers.clip import VIT_L, linear_head, published_clip_pictures

        return published_clip_pictures(VIT_L, linear_head(VIT_L["projection_dim"]))

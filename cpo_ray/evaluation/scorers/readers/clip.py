"""CLIP as a reader: pictures and texts in one space, from weights under the names of transformers or of open_clip."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from cpo_ray.config.evaluation import PromptScorerSettings
from cpo_ray.evaluation.scorers.base import NotScored
from cpo_ray.evaluation.scorers.readers.base import Reader, WeightFiles, find_weights, load_into

#: The published ViT-L/14 of OpenAI and ViT-H/14 of LAION (trained on LAION-2B), as CLIPConfig takes them.
VIT_L: dict[str, Any] = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
    },
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}
VIT_H: dict[str, Any] = {
    "projection_dim": 1024,
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "hidden_act": "gelu",
    },
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}

#: Layers of a block: open_clip's name → that of transformers. The attention's three inputs are one matrix in open_clip.
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OTHERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
#: These matrices are stored the other way round.
_TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_PREFIXES = ("module.", "model.", "clip.")


class ClipReader(Reader):
    """Reads the cosine between a picture and its prompt."""

    def __init__(self, clip: CLIPModel, tokenizer: Any = None) -> None:
        super().__init__()
        self.clip, self._tokenizer = clip, tokenizer
        self.side: int = clip.config.vision_config.image_size
        self._longest: int = clip.config.text_config.max_position_embeddings

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Ids and mask (N, T), cut to the model's length."""
        given = self._tokenizer(list(prompts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt")
        return {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}

    def largest_tokens(self, count: int) -> dict[str, Tensor]:
        """Full texts for the planner."""
        return {"input_ids": torch.ones(count, self._longest, dtype=torch.long)}

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, 1) cosines."""
        pictures = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        read = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask)
        texts = self.clip.text_projection(read.pooler_output)
        return functional.cosine_similarity(pictures, texts)[:, None]


class ClipPictureReader(Reader):
    """Reads a picture's own vector of length 1 in CLIP's space, or what `head` makes of it."""

    def __init__(self, clip: CLIPVisionModelWithProjection, head: nn.Module | None = None) -> None:
        super().__init__()
        self.clip, self.head = clip, head or nn.Identity()
        self.side: int = clip.config.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, D), (N, 1) with the head of LAION-Aesthetic."""
        read: Tensor = self.head(functional.normalize(self.clip(pixel_values=pixels).image_embeds, dim=-1))
        return read


def load_clip(told: PromptScorerSettings, published: dict[str, Any], vocabulary: str) -> ClipReader:
    """Load a reader from the weights that a scorer is told of.

    `published` is the model where they come without a config.json, and `vocabulary` the hub id of its tokenizer.

    Raises NotScored where they are not to be had, or are of another model.
    """
    weights = find_weights(told)
    with torch.device("meta"):
        clip = CLIPModel(_configuration(weights, published))
    load_into(clip, clip_names(weights.tensors(), weights.source), weights.source)
    return ClipReader(clip, tokenizer_of(told, weights, vocabulary)).eval()


def load_clip_pictures(
    tensors: Mapping[str, Tensor], weights: WeightFiles, published: dict[str, Any], head: nn.Module | None = None
) -> ClipPictureReader:
    """The half of a CLIP that sees pictures, from all of its tensors. Raises NotScored where they are of another model."""
    seeing = {name: values for name, values in clip_names(tensors, weights.source).items() if name.startswith("vis")}
    with torch.device("meta"):
        clip = _seeing(_configuration(weights, published))
    load_into(clip, seeing, weights.source)
    return ClipPictureReader(clip, head).eval()


def published_clip(published: dict[str, Any]) -> ClipReader:
    """The published model without weights, on the current device."""
    return ClipReader(CLIPModel(CLIPConfig.from_dict(published)))


def published_clip_pictures(published: dict[str, Any], head: nn.Module | None = None) -> ClipPictureReader:
    """Its half that sees pictures."""
    return ClipPictureReader(_seeing(CLIPConfig.from_dict(published)), head)


def _configuration(weights: WeightFiles, published: dict[str, Any]) -> CLIPConfig:
    given = weights.configuration()
    return CLIPConfig.from_dict(given if given and given.get("model_type") == "clip" else published)


def _seeing(config: CLIPConfig) -> CLIPVisionModelWithProjection:
    config.vision_config.projection_dim = config.projection_dim
    return CLIPVisionModelWithProjection(config.vision_config)


def clip_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of a CLIP under transformers' names, whichever of the two they come under, with or without a prefix.

    Raises NotScored for a layer of open_clip that this map does not know.
    """
    found: dict[str, Tensor] = {}
    for full, values in tensors.items():
        name = full
        while prefix := next((each for each in _PREFIXES if name.startswith(each)), None):
            name = name.removeprefix(prefix)
        if name.startswith(("vision_model.", "text_model.", "visual_projection.", "text_projection.")):
            found[name] = values
        elif name in _TURNED:
            found[_TURNED[name]] = values.T.contiguous()
        elif name in _OTHERS:
            found[_OTHERS[name]] = values
        elif block := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name):
            below = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"
            found |= _of_block(below, block[3], values, source)
        elif name != "attn_mask":
            raise NotScored(f"{source} has {full!r}, which no CLIP has; choose weights of a CLIP")
    return found


def _of_block(below: str, name: str, values: Tensor, source: str) -> dict[str, Tensor]:
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        parts = zip("qkv", values.chunk(3), strict=True)
        return {f"{below}.self_attn.{part}_proj.{name.rpartition('_')[2]}": each.clone() for part, each in parts}
    layer, _, kind = name.rpartition(".")
    if layer not in _BLOCK:
        raise NotScored(f"{source} has a layer {name!r} in a block, which no CLIP has; choose weights of a CLIP")
    return {f"{below}.{_BLOCK[layer]}.{kind}": values}


def tokenizer_of(told: PromptScorerSettings, weights: WeightFiles, published: str) -> Any:
    """The vocabulary that a scorer is told of, or the one beside its weights, or the published one.

    Raises NotScored where it is not to be had.
    """
    names = ("tokenizer.json", "vocab.json", "vocab.txt")
    beside = weights.folder is not None and any((weights.folder / name).is_file() for name in names)
    source = told.tokenizer or (str(weights.folder) if beside else published)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # no network, no such repository, a vocabulary of another library
        reason = str(error).strip().partition("\n")[0]
        raise NotScored(f"the vocabulary {source} cannot be had ({reason}); name a folder that has it with `tokenizer`") from None


def linear_head(width: int) -> nn.Sequential:
    """The stack of linear layers that LAION-Aesthetic and ImageReward end with: no activation between them, and no dropout here.

    Its numbering leaves out those of the dropouts, as the published names do.
    """
    layers = zip("02467", (width, 1024, 128, 64, 16), (1024, 128, 64, 16, 1), strict=True)
    stack = nn.Sequential()
    for name, given, made in layers:
        stack.add_module(name, nn.Linear(given, made))
    return stack

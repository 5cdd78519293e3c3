"""BLIP with a head, as ImageReward has it: the text is read beside the picture, and its first token gets a reward."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from cpo_ray.evaluation.scorers.base import NotScored
from cpo_ray.evaluation.scorers.readers.base import Reader
from cpo_ray.evaluation.scorers.readers.clip import linear_head

#: Mean and standard deviation of the published head's raw numbers; a reward is reported in them.
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
#: Tokens of a prompt that are read, and that each prompt is filled up to.
LONGEST = 35

#: The published BLIP, with a ViT-L/16. [DEC] and [ENC] follow the 30522 words of BERT.
VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
}
TEXT: dict[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}

#: The original's name of a part that sees → that of transformers.
_SEEING = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
#: These were trained beside the reward and are not a part of it.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")


class BlipReader(Reader):
    """Reads the reward of a picture for its prompt."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], tokenizer: Any = None) -> None:
        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        self.text = BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False)
        self.head = linear_head(self.text.config.hidden_size)
        self.side: int = self.vision.config.image_size
        self.tokenizer = tokenizer

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Ids and mask (N, 35)."""
        given = self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt")
        return {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}

    def largest_tokens(self, count: int) -> dict[str, Tensor]:
        """Every prompt has the same length."""
        return {"input_ids": torch.ones(count, LONGEST, dtype=torch.long)}

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, 1) rewards."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=seen)
        reward: Tensor = (self.head(read.last_hidden_state[:, 0]) - MEAN) / DEVIATION
        return reward


def reward_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The published tensors under the names of `BlipReader`. Raises NotScored for a layer that this map does not know."""
    found: dict[str, Tensor] = {}
    for name, values in tensors.items():
        if name.startswith("blip.text_encoder."):
            found[f"text.{name.removeprefix('blip.text_encoder.')}"] = values
        elif name.startswith("mlp.layers."):
            found[f"head.{name.removeprefix('mlp.layers.')}"] = values
        elif name.startswith("blip.visual_encoder."):
            found[f"vision.{_seeing(name.removeprefix('blip.visual_encoder.'), source)}"] = values
        elif not name.startswith(_UNUSED):
            raise NotScored(f"{source} has {name!r}, which ImageReward has not; choose its weights")
    return found


def _seeing(name: str, source: str) -> str:
    if name in _SEEING:
        return _SEEING[name]
    layer, _, kind = name.rpartition(".")
    if layer in _SEEING:
        return f"{_SEEING[layer]}.{kind}"
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    if block is None or block[2] not in _BLOCK:
        raise NotScored(f"{source} has a layer {name!r}, which ImageReward has not; choose its weights")
    return f"encoder.layers.{block[1]}.{_BLOCK[block[2]]}.{kind}"

"""Where the layers of diffusers' UNet lie in SDXL's original code, whose names kohya's scripts and ComfyUI use."""

from __future__ import annotations

import re
from typing import Any

from cpo_ray.models.adapters.formats import LayerPlace


def original_place(config: Any, module: str) -> LayerPlace:
    """Return the original layer, which has one diffusers layer. Raises KeyError for a layer without a place."""
    return LayerPlace(_original_path(config, module), (module,))


def _original_path(config: Any, module: str) -> str:
    """Return the original name. The original code numbers its layers through all blocks; each entry lists resnet, attention and
    sampler.
    """
    if not (match := _IN_BLOCK.fullmatch(module)):
        return _OUTSIDE_BLOCKS[module]
    side, block, kind, number, layer = match.groups(default="0")
    index, last = int(number), config.layers_per_block
    if kind == "resnets":
        layer = _RESNET[layer]
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{layer}"
    first = int(block) * (last + 1)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{first + last + 1}.0.op"
        return f"input_blocks.{first + index + 1}.{int(kind == 'attentions')}.{layer}"
    if kind == "upsamplers":
        return f"output_blocks.{first + last}.{2 if 'CrossAttn' in config.up_block_types[int(block)] else 1}.conv"
    return f"output_blocks.{first + index}.{int(kind == 'attentions')}.{layer}"


_IN_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}

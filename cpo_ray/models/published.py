"""The denoisers that people download, as their configurations: what they take can be known without downloading them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn

#: stabilityai/stable-diffusion-xl-base-1.0
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),  # diffusers' name; it holds the number of heads
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
#: black-forest-labs/FLUX.1-dev
FLUX_TRANSFORMER: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}


def published_denoiser(family: str) -> nn.Module:
    """The denoiser of "sdxl" or "flux" at its real size on the meta device: shapes without memory, in evaluation mode."""
    with torch.device("meta"):
        if family == "flux":
            return FluxTransformer2DModel(**FLUX_TRANSFORMER).eval()
        return UNet2DConditionModel(**SDXL_UNET).eval()

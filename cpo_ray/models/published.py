"""The models that people download, as their configurations: what they take can be known without downloading them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

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


#: The first text encoder of both, and the second of each.
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
}
_VAES: dict[str, dict[str, Any]] = {
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025},
    "flux": {
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}


def published_denoiser(family: str) -> nn.Module:
    """The denoiser of "sdxl" or "flux" at its real size on the meta device: shapes without memory, in evaluation mode."""
    with torch.device("meta"):
        return denoiser_like_published(family)


def denoiser_like_published(family: str, **changes: Any) -> nn.Module:
    """The same with random weights, where and in what dtype torch is set to; `changes` are to the configuration."""
    if family == "flux":
        return FluxTransformer2DModel(**FLUX_TRANSFORMER | changes).eval()
    return UNet2DConditionModel(**SDXL_UNET | changes).eval()


def vae_like_published(family: str, **changes: Any) -> AutoencoderKL:
    """The family's VAE with random weights."""
    return AutoencoderKL(**_VAE | _VAES[family] | changes).eval()


def text_encoders_like_published(family: str, first: dict[str, Any], second: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """The family's two text encoders with random weights; `first` and `second` change their configurations."""
    clip = CLIPTextModel(CLIPTextConfig(**CLIP_L | first)).eval()
    if family == "flux":
        return clip, T5EncoderModel(T5Config(**T5_XXL | second)).eval()
    return clip, CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_BIG_G | second)).eval()

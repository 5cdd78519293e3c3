"""SDXL's published base, so that its needs are known without a download."""

from __future__ import annotations

from collections.abc import Mapping

from cpo_ray.models.published import CLIP_BIG_G, CLIP_L, VAE
from cpo_ray.models.skeleton import Configurations

#: stabilityai/stable-diffusion-xl-base-1.0
PUBLISHED = Configurations(
    denoiser={
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
    },
    vae=VAE | {"latent_channels": 4, "scaling_factor": 0.13025},
    text_encoders=(CLIP_L, CLIP_BIG_G),
    scheduler={
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "clip_sample": False,
    },
    pipeline={"force_zeros_for_empty_prompt": True, "add_watermarker": False},
)
#: Base → the licence that it is published under.
LICENCES: Mapping[str, str] = {"stabilityai/stable-diffusion-xl-base-1.0": "openrail++"}

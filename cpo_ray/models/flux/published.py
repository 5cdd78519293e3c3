"""FLUX.1's published bases, so that their needs are known without a download."""

from __future__ import annotations

from collections.abc import Mapping

from cpo_ray.models.published import CLIP_L, T5_XXL, VAE
from cpo_ray.models.skeleton import Configurations

#: black-forest-labs/FLUX.1-dev
PUBLISHED = Configurations(
    denoiser={
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    vae=VAE
    | {
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    text_encoders=(CLIP_L, T5_XXL),
    scheduler={
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    },
)
#: Base → the licence that it is published under.
LICENCES: Mapping[str, str] = {
    "black-forest-labs/FLUX.1-dev": "flux-1-dev-non-commercial-license",
    "black-forest-labs/FLUX.1-schnell": "apache-2.0",
}

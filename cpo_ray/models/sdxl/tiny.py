"""A small SDXL."""

from __future__ import annotations

from cpo_ray.models.skeleton import Configurations
from cpo_ray.models.tiny import Widths, tiny_clip, tiny_vae

_TIME = 32


def tiny(widths: Widths) -> Configurations:
    """Return the configurations of a small base that predicts the velocity, as its noise schedule ends in pure noise."""
    channels = widths.denoiser
    clip = tiny_clip(widths)
    return Configurations(
        denoiser={
            "sample_size": 16,
            "in_channels": widths.latent,
            "out_channels": widths.latent,
            "block_out_channels": channels,
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D",) * len(channels),
            "up_block_types": ("CrossAttnUpBlock2D",) * len(channels),
            "transformer_layers_per_block": 1,
            "attention_head_dim": tuple(max(1, c // 32) for c in channels),  # diffusers' name; it holds the number of heads
            "cross_attention_dim": 2 * widths.text,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME,
            "projection_class_embeddings_input_dim": widths.text + 6 * _TIME,
            "norm_num_groups": min(16, channels[0] // 2),
        },
        vae=tiny_vae(widths),
        text_encoders=(clip, clip),
        scheduler={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "clip_sample": False,
            "set_alpha_to_one": True,
        },
        pipeline={"force_zeros_for_empty_prompt": False, "add_watermarker": False},
    )

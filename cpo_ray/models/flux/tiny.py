"""A small FLUX.1."""

from __future__ import annotations

from cpo_ray.models.skeleton import Configurations
from cpo_ray.models.tiny import Widths, tiny_clip, tiny_t5, tiny_vae

_HEAD = 16


def tiny(widths: Widths) -> Configurations:
    """Return the configurations of a small base that takes a guidance value, as FLUX.1-dev does."""
    return Configurations(
        denoiser={
            "in_channels": 4 * widths.latent,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": _HEAD,
            "num_attention_heads": widths.denoiser[0] // _HEAD,
            "joint_attention_dim": widths.text,
            "pooled_projection_dim": widths.text,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
        vae=tiny_vae(widths) | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        text_encoders=(tiny_clip(widths), tiny_t5(widths)),
        scheduler={"shift": 3.0, "use_dynamic_shifting": True},
    )

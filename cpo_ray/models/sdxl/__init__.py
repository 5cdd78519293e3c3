"""Stable Diffusion XL: a UNet in noise or velocity space, two CLIP text encoders, pooled text and sizes in the time embedding."""

from __future__ import annotations

from cpo_ray.models.sdxl.family import FAMILY, SDXL

__all__ = ["FAMILY", "SDXL"]

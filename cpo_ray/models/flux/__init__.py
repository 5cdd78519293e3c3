"""FLUX.1: a transformer in velocity space over 2 x 2 patches of the latent, CLIP for the pooled text and T5 for its tokens."""

from __future__ import annotations

from cpo_ray.models.flux.family import FAMILY, Flux

__all__ = ["FAMILY", "Flux"]

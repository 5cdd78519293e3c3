"""Stage 2: what the model learns, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from cpo_ray.config.model import Lora
from cpo_ray.config.optimization import Optimization
from cpo_ray.config.section import Section


class Preference(Section):
    """Stage 2: the objective (paper, Eq. 10 to 14)."""

    objective: Literal["cpo", "cpo_s"] = "cpo_s"
    omega_win: float = Field(default=2.0, ge=0)
    omega_lose: float = Field(default=2.0, ge=0)
    beta: PositiveFloat = 5000.0
    """β of the public Diffusion-DPO code: κ = β / 2 on the mean over C, H, W."""
    lora: Lora = Lora()
    optimization: Optimization
    baselines: tuple[Literal["sft", "cpo", "cpo_s"], ...] = ()
    """Trained on the same data for comparison: "sft" is supervised training on the pictures with at most one negative."""

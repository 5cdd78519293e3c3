"""Stage 1: how the expert θ1 is trained."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cpo_ray.config.model import Lora
from cpo_ray.config.optimization import Optimization
from cpo_ray.config.section import Section


class ConditionMixture(Section):
    """How often stage 1 sees each form of the condition. The shares are normalised (docs/method.md, stage 1)."""

    null: float = Field(default=0.07, ge=0)
    negative: float = Field(default=0.13, ge=0)
    content: float = Field(default=0.05, ge=0)
    content_positive: float = Field(default=0.22, ge=0)
    all: float = Field(default=0.53, ge=0)
    attribute_dropout: float = Field(default=0.35, ge=0, lt=1)
    """Chance that an attribute is left out of the text. Otherwise a missing positive would reveal the negative."""


class ExpertSettings(Section):
    """Stage 1: the expert θ1 = base + SFT adapter."""

    adapter: Path | None = None
    """A finished expert: a LoRA of diffusers, PEFT, kohya's scripts or ComfyUI, as a file or its folder, or the folder of a whole
    denoiser of ours. Without it stage 1 trains one."""
    lora: Lora = Lora()
    optimization: Optimization
    conditions: ConditionMixture = ConditionMixture()
    obedience_gate: float = 0.15
    """The run warns before stage 2 if IoU_neg(C) - IoU_neg(A) of the expert is below this value (Table S6)."""
    stop_at_gate: bool = False
    """Stop the run instead of warning."""

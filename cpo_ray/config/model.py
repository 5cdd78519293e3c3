"""The base model and the adapters that are trained on it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from cpo_ray.config.registry import FAMILIES
from cpo_ray.config.section import Section


class Flow(Section):
    """Settings of rectified-flow families (FLUX). Other families have their own noise schedule and ignore this section."""

    timesteps: Literal["uniform", "logit_normal"] = "logit_normal"
    """How training draws its times in (0, 1): "uniform" as in the paper, or more from the middle (Esser et al. 2024)."""
    shift: PositiveFloat | None = None
    """Moves times towards noise; 1 leaves them. By default the shift of the base's own pipeline, 3.16 for FLUX.1-dev at 1024."""
    guidance: float = Field(default=1.0, ge=0)
    """Guidance value given to a distilled base in training: the same for expert, reference and trained model."""
    text_tokens: int = Field(default=512, ge=8, le=512)
    """Longest text of the T5 encoder in tokens, the end token included."""
    padded_text: bool = False
    """False: the model sees only a text's own tokens, which are what is stored. True: text_tokens tokens, padding included, as
    diffusers' pipeline and others feed FLUX.1; 4 MB per prompt at 512."""


class Model(Section):
    family: str
    """Architecture of the base model, by name, or your own as "module:name"."""
    base: str
    """Hub id or local folder of the base pipeline, or "package:MODULE/FOLDER" for one that a Python package ships. It may be left
    out with a domain that has a base of its own."""
    revision: str | None = None
    """Git revision of a hub id. Pin it, since it is part of the targets' address."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision of frozen and trained models. Stored targets have their own precision (see core/schema.py)."""
    text_chunks: PositiveInt = 1
    """For sdxl, whose text encoders read 75 tokens at once: longer texts are encoded in so many parts of 75. With 1,
    attributes that do not fit are left out."""
    resolution: PositiveInt = 1024
    """Side in pixels of the square that training pictures fill, or whose area they have (see data.pictures)."""
    flow: Flow = Flow()

    @field_validator("family")
    @classmethod
    def _a_known_family(cls, family: str) -> str:
        if family not in FAMILIES.names and ":" not in family:
            raise ValueError(f"choose one of {', '.join(FAMILIES.names)}, or give your own as module:name")
        return family


class Lora(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the linear layers that get an adapter, matched at the end of a module's path."""

"""The base model and the adapters that are trained on it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from cpo_ray.config.section import Section


class Flow(Section):
    """Rectified-flow families (FLUX); the others have a noise schedule of their own and read nothing here."""

    timesteps: Literal["uniform", "logit_normal"] = "logit_normal"
    """How training draws its times in (0, 1): evenly, as in the paper, or more from the middle (Esser et al. 2024)."""
    shift: PositiveFloat | None = None
    """Moves times towards noise, 1 leaves them; without it as far as the base's own pipeline, 3.16 for FLUX.1-dev at 1024."""
    guidance: float = Field(default=1.0, ge=0)
    """The guidance that a distilled base is told in training: one value for expert, reference and trained model."""
    text_tokens: int = Field(default=512, ge=8, le=512)
    """Longest text of the T5 encoder, the end token included."""
    padded_text: bool = False
    """False: the model sees a text's own tokens only, which is what is stored. True: text_tokens of them, padding included, as
    diffusers' pipeline and others feed FLUX.1; 4 MB per prompt at 512."""


class Model(Section):
    family: Literal["sdxl", "flux"]
    """Architecture of the base model."""
    base: str
    """Hub id or local folder of the base pipeline, or "toy" for the embedded one."""
    revision: str | None = None
    """Git revision of a hub id; pin it, since target shards are addressed by it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision of frozen and trained models; stored targets keep their own (see schema)."""
    resolution: PositiveInt = 1024
    """Side in pixels of the square that training pictures are, or have the area of (see data.pictures)."""
    flow: Flow = Flow()


class Lora(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    """Scale of the update is alpha / rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the linear layers that get an adapter (matched at the end of the module's path)."""

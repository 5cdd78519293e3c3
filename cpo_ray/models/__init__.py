"""One file per architecture behind one Protocol; the only room that imports diffusers, transformers and peft."""

from __future__ import annotations

from cpo_ray.config import Model
from cpo_ray.models.base import Family


def family(model: Model) -> Family:
    """The architecture that a model section names; imported only when asked for, since each import takes seconds."""
    from cpo_ray.models.sdxl import SDXL

    return {"sdxl": SDXL}[model.family]()

"""One file per architecture behind one Protocol; the only room that imports diffusers, transformers and peft."""

from __future__ import annotations

import logging
from importlib import import_module

from cpo_ray.config import Model
from cpo_ray.models.base import Family

#: Architecture, which is also its module's name here → the pipeline class that diffusers writes for it.
PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}

# Without torchvision, which nothing here needs, it says twice in every process that pictures are processed with Pillow.
logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)


def family(model: Model) -> Family:
    """The architecture that a model section names; imported only when asked for, since each import takes seconds."""
    found: Family = import_module(f"cpo_ray.models.{model.family}").FAMILY
    return found

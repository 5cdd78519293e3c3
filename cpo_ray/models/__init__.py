"""One file per architecture behind one Protocol; the only room that imports diffusers, transformers and peft."""

from __future__ import annotations

import logging

from cpo_ray.config import Model
from cpo_ray.config.registry import FAMILIES
from cpo_ray.models.base import Family

# Without torchvision, which nothing here needs, it says twice in every process that pictures are processed with Pillow.
logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)


def family(model: Model) -> Family:
    """The architecture that a model section names; imported only when asked for, since each import takes seconds."""
    found: Family = FAMILIES.load(model.family)
    return found

"""A folder per architecture behind one Protocol; the only package that imports diffusers, transformers and peft."""

from __future__ import annotations

import logging

from cpo_ray.config import ConfigError, Model
from cpo_ray.config.registry import FAMILIES
from cpo_ray.models.base import Family

# Without torchvision, which nothing here needs, transformers warns twice in every process that it uses Pillow.
logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)


def family(model: Model) -> Family:
    """Return the architecture that a model section names. It is imported at its first use, since each import takes seconds.

    Raises ConfigError for an unknown family, and for something that is not one.
    """
    found: Family = FAMILIES.load(model.family)
    if isinstance(found, type):
        raise ConfigError(f"family {model.family!r} is a class; name an object of it, such as FAMILY = {found.__name__}()")
    if lacking := [name for name in (*Family.__annotations__, *vars(Family)) if name[0] != "_" and not hasattr(found, name)]:
        raise ConfigError(f"family {model.family!r} has no {', '.join(lacking)}, which cpo_ray.models.base.Family asks for")
    return found

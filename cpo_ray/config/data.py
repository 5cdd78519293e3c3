"""The pictures that a run learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from cpo_ray.config.section import Section


class Pictures(Section):
    """The size at which a picture is trained: it is scaled down to cover a bucket of fixed size, and the rest is cropped."""

    buckets: Literal["square", "aspect"] = "square"
    """With "square" both sides are model.resolution. "aspect" takes the size of about that area which crops least, from 1:2 to
    2:1, as SDXL was trained."""
    multiple: int = Field(default=64, ge=8)
    """Sides of aspect buckets are multiples of this many pixels. 64 with resolution 1024 gives SDXL's own sizes."""
    together: PositiveInt = 8
    """How many pictures of one size a step of aspect buckets takes together. The largest divisor of global_batch up to this
    number counts, and no micro-batch is larger."""
    crop: Literal["center", "random"] = "center"
    """The place of the crop: evenly on both sides, or at random, again in every draw. SDXL is told the place."""
    upscale: bool = False
    """Scale up pictures that are too small. Otherwise aspect buckets take them at 3/4 or 1/2 of the resolution. Pictures smaller
    than that, or smaller than the square, are left out and counted before training starts."""


class Data(Section):
    folder: Path
    """Folder of annotated shards (Parquet). Training reads it, and the import writes it."""
    hierarchy: Path
    """YAML file of the attribute tree that the annotations refer to."""
    proportion: float = Field(default=1.0, gt=0, le=1)
    """Share of the training pictures in use. Smaller shares are parts of larger ones, by the hash of the id (paper, Table 3)."""
    pictures: Pictures = Pictures()

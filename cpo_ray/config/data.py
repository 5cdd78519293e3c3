"""The pictures that a run learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from cpo_ray.config.section import Section


class Pictures(Section):
    """At what size a picture is trained on: it is scaled down to cover a bucket of fixed size, and what sticks out is cut off."""

    buckets: Literal["square", "aspect"] = "square"
    """square: model.resolution on both sides. aspect: the size of about that area which cuts off least, from 1:2 to 2:1, as
    SDXL was trained."""
    multiple: int = Field(default=64, ge=8)
    """Sides in aspect buckets are multiples of this many pixels; 64 and resolution 1024 give SDXL's own sizes."""
    together: PositiveInt = 8
    """A step of aspect buckets is made of so many pictures of one size, as many of another, and so on (as far as that divides
    global_batch). A micro-batch takes no more."""
    crop: Literal["center", "random"] = "center"
    """Where the picture is cut: evenly on both sides, or at random, anew in every draw. SDXL is told where."""
    upscale: bool = False
    """Scale up pictures that are too small. Otherwise aspect buckets take them at 3/4 or 1/2 of the resolution, and pictures that
    are smaller still, or smaller than the square, are left out; their number is said before training starts."""


class Data(Section):
    folder: Path
    """Annotated shards (Parquet) are read from here; the import writes them here."""
    toy_pictures: int = Field(default=0, ge=0)
    """With a positive number the embedded domain draws that many annotated pictures into `folder` when it is empty."""
    hierarchy: Path
    """YAML file of the attribute tree that the annotations refer to."""
    proportion: float = Field(default=1.0, gt=0, le=1)
    """Share of the training pictures used, a nested choice by the hash of the id (paper, Table 3)."""
    pictures: Pictures = Pictures()

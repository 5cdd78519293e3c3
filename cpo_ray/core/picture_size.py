"""Where a training picture was cut from; without torch, which readers of pictures do not need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PictureSize:
    """SDXL's micro-conditioning, (height, width) in pixels: size before resizing, top left corner of the
    crop, size in training.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

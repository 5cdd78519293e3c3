"""A folder that holds pictures in every form that is read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encoded(kind: str = "png", mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 128 if mode in ("1", "L") else (128,) * len(mode)).save(stream, kind, **options)
    return stream.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("jpeg", exif=exif)


def mixed_folder(folder: Path) -> dict[str, str]:
    """Write 20 pictures of every kind that is met with; returns id → a part of the reason, or "" where it can be read."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    stream = io.BytesIO()
    noise.save(stream, "jpeg")
    files: dict[str, tuple[bytes, str]] = {
        "alpha.png": (encoded(mode="RGBA"), ""),
        "animated.gif": (encoded("gif", "L"), ""),
        "bitmap.bmp": (encoded("bmp"), ""),
        "cmyk.jpg": (encoded("jpeg", "CMYK"), ""),
        "deep/er/nested.PNG": (encoded(), ""),
        "empty.png": (b"", "not an image of a known format"),
        "enormous.png": (encoded(mode="1", size=(10_000, 10_001)), "100 megapixels are the most"),
        "grey.jpeg": (encoded("jpeg", "L"), ""),
        "grey_alpha.png": (encoded(mode="LA"), ""),
        "name with spaces é.png": (encoded(), ""),
        "one_high.png": (encoded(size=(500, 1)), "500 x 1 pixels; 16 on each side are the least"),
        "palette.png": (encoded(mode="1"), ""),
        "photo.heic": (b"\0\0\0\x18ftypheic", "not an image of a known format"),
        "picture.webp": (encoded("webp"), ""),
        "plain.jpg": (encoded("jpeg"), ""),
        "print.tif": (encoded("tiff", "CMYK"), ""),
        "script.jpg": (b"import os\n", "not an image of a known format"),
        "truncated.jpg": (stream.getvalue()[:-700], "damaged or truncated"),
        "upright.jpg": (rotated(), ""),
        "wrong_name.png": (encoded("jpeg"), ""),
    }
    for name, (data, _) in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for ignored in ("notes.txt", ".hidden.png", ".cache/hidden.png", "Thumbs.db"):
        (folder / ignored).parent.mkdir(exist_ok=True)
        (folder / ignored).write_bytes(b"x")
    return {name: reason for name, (_, reason) in files.items()}

"""From the bytes of an image file to the pixels that a model is trained on."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cpo_ray.models.base import PictureSize

# No other decoder of PIL is reachable from a data set; among them are ones that start programs, such as EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 100_000_000
MIN_SIDE = 16
# Keeps a row group of 16 pictures within the 2 GiB that one Arrow binary array can hold.
MAX_BYTES = 64 * 2**20

CENTER = (0.5, 0.5)

# What PIL's decoders raise on damaged input.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, struct.error, zlib.error)


class PictureError(ValueError):
    """A picture cannot be used; the message is one sentence that says why."""


def decode(data: bytes) -> Image.Image:
    """Decode an image file to RGB, sRGB values in [0, 255]: EXIF rotation applied, transparency laid on white, first frame only.

    The size is read from the header and checked before any pixel is decoded.  Raises PictureError for what is no image, damaged
    or truncated, has a side below 16 pixels, more than 100 megapixels, more than 64 MiB, or 32 bits per channel.
    """
    if len(data) > MAX_BYTES:
        raise PictureError(f"the image file is larger than {MAX_BYTES // 2**20} MiB; save it smaller")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_size(*opened.size)
            opened.load()
            return _rgb(ImageOps.exif_transpose(opened))
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(f"the file is not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise PictureError(f"the picture has more than {MAX_PIXELS // 10**6} megapixels; save it smaller") from None
    except _DAMAGE as error:
        raise PictureError(f"the image file is damaged or truncated ({error}); save it anew") from None


def fit(
    picture: Image.Image, size: tuple[int, int], place: tuple[float, float] = CENTER
) -> tuple[NDArray[np.uint8], PictureSize]:
    """Resize to cover `size`, (width, height) in pixels, with antialiasing, and crop what sticks out.

    `place` says where, across and down: 0 keeps the left or the top, 1 the right or the bottom. Returns (height, width, 3) uint8
    sRGB and SDXL's sizes: the original, the crop's top left corner in pixels of the resized picture, and the target, each as
    (height, width).
    """
    (width, height), (columns, rows) = picture.size, size
    seen = (width, width * rows / columns) if width * rows <= height * columns else (height * columns / rows, height)
    left, top = (
        round((length * target / shown - target) * share)
        for length, target, shown, share in zip(picture.size, size, seen, place, strict=True)
    )
    # Only what the crop shows is resized, so that a very long picture takes no more memory than a square one.
    x, y = min(left * seen[0] / columns, width - seen[0]), min(top * seen[1] / rows, height - seen[1])
    cropped = picture.resize(size, Image.Resampling.LANCZOS, box=(x, y, x + seen[0], y + seen[1]))
    return np.array(cropped), PictureSize((height, width), (top, left), (rows, columns))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PictureError(f"the picture has {width} x {height} pixels; {MAX_PIXELS // 10**6} megapixels are the most")
    if min(width, height) < MIN_SIDE:
        raise PictureError(f"the picture has {width} x {height} pixels; {MIN_SIDE} on each side are the least")


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F"):
        raise PictureError("the picture has 32 bits per channel, whose white is not defined; save it with 8 or 16 bits")
    if picture.mode.startswith("I;16"):
        # PIL would clip 16-bit grey at 255 and so turn nearly everything white.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return picture.convert("RGB")

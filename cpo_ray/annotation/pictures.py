"""A picture as a back end sees it: decoded, upright, on white, and no larger than needed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpo_ray.data.picture import decode


@dataclass(frozen=True)
class Picture:
    """One picture to ask about. `digest` is the hash of its file, or of its pixels if it was never in one, `seen` the encoded
    picture that is sent; sizes are (width, height).
    """

    id: str
    prompt: str
    digest: str
    seen: bytes
    media_type: str
    size: tuple[int, int]
    seen_size: tuple[int, int]

    def pixels(self) -> Image.Image:
        """The sent picture as RGB."""
        return Image.open(io.BytesIO(self.seen)).convert("RGB")


def picture_digest(data: bytes) -> str:
    """Return 32 hexadecimal digits over the bytes of an image file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def prepare(sample_id: str, prompt: str, data: bytes, side: int, kind: Literal["jpeg", "png"]) -> Picture:
    """Decode an image file and encode it for sending, with `side` pixels on its longest side. Raises PictureError."""
    return _seen(sample_id, prompt, picture_digest(data), decode(data), (side, kind))


def drawn(sample_id: str, prompt: str, pixels: NDArray[np.uint8], side: int, kind: Literal["jpeg", "png"]) -> Picture:
    """Encode a picture (H, W, 3) sRGB that was drawn here, as `prepare` does; the same pixels always have the same digest."""
    digest = picture_digest(repr(pixels.shape).encode() + pixels.tobytes())
    return _seen(sample_id, prompt, digest, Image.fromarray(pixels), (side, kind))


def _seen(sample_id: str, prompt: str, digest: str, picture: Image.Image, sent: tuple[int, Literal["jpeg", "png"]]) -> Picture:
    """Encode a decoded picture. `sent` are the longest side and the format of what the back end sees."""
    (side, kind), size = sent, picture.size
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 90} if kind == "jpeg" else {"compress_level": 1}))
    return Picture(sample_id, prompt, digest, stream.getvalue(), f"image/{kind}", size, picture.size)

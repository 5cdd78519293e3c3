"""A picture as a back end sees it: decoded, upright, on white, and no larger than needed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from cpo_ray.data.picture import decode


@dataclass(frozen=True)
class Picture:
    """One picture to ask about. `digest` is the hash of its file, `seen` the encoded picture that is sent; sizes are (width,
    height).
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
    picture = decode(data)
    size = picture.size
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 90} if kind == "jpeg" else {"compress_level": 1}))
    return Picture(sample_id, prompt, picture_digest(data), stream.getvalue(), f"image/{kind}", size, picture.size)

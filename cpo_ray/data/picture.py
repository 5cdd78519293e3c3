"""Turn the bytes of an image file into the pixels that a model is trained on."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from cpo_ray.core.picture_size import PictureSize

# No other decoder of PIL is reachable from a data set. Some start programs, such as EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 100_000_000
#: Above this number of pixels a file must have a byte for every so many pixels. No photograph compresses further; files that are
#: made to fill the memory do.
BOMB_PIXELS, BOMB_RATIO = 25_000_000, 100
#: Transparent pictures are put on white in strips of this many pixels, since several whole copies take gigabytes.
_STRIP = 2**22
MIN_SIDE = 16
# This limit keeps a row group of 16 pictures within the 2 GiB of one Arrow binary array.
MAX_BYTES = 64 * 2**20

CENTER = (0.5, 0.5)

# The only compressed chunk that PIL reads of a PNG here is the colour profile, which may be larger than the megabyte it allows.
PngImagePlugin.MAX_TEXT_CHUNK = 2**24

_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
#: EXIF orientation → the transposition that turns the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """A picture cannot be used; the message is one sentence that says why."""


def decode(data: bytes) -> Image.Image:
    """Decode an image file to RGB with sRGB values in [0, 255].

    A colour profile is converted, EXIF rotation is applied, transparency becomes white, and of several frames the first is taken.
    The size is read from the header and checked before any pixel is decoded, and so is how far the pixels are compressed. Text
    chunks are not read. A picture takes 8 bytes of memory a pixel at most.

    Raises PictureError if the file is not an image, is damaged or truncated, has a side below 16 pixels, more than 100
    megapixels, more than 64 MiB, over 25 megapixels in less than a byte for 100 of them, or 32 bits per channel.
    """
    if len(data) > MAX_BYTES:
        raise PictureError(f"the image file is larger than {MAX_BYTES // 2**20} MiB; save it smaller")
    try:
        with Image.open(io.BytesIO(_without_text(data)), formats=FORMATS) as opened:
            _check_size(*opened.size, len(data))
            opened.load()
            return _upright(_rgb(opened), _orientation(opened))
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"the file is not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise PictureError(f"the picture has more than {MAX_PIXELS // 10**6} megapixels; save it smaller") from None
    except Exception as error:  # decoders raise any exception, and one picture must not end the work on all others
        raise PictureError(f"the image file is damaged or truncated ({error}); save it again") from None


def fit(
    picture: Image.Image, size: tuple[int, int], place: tuple[float, float] = CENTER
) -> tuple[NDArray[np.uint8], PictureSize]:
    """Resize a picture to cover `size`, (width, height) in pixels, with antialiasing, and crop the rest.

    `place` says where to crop, horizontally and vertically: 0 keeps the left or the top, 1 the right or the bottom. Returns
    (height, width, 3) uint8 sRGB and SDXL's sizes: the original, the crop's top left corner in pixels of the resized picture, and
    the target, each as (height, width).
    """
    (width, height), (columns, rows) = picture.size, size
    seen = (width, width * rows / columns) if width * rows <= height * columns else (height * columns / rows, height)
    left, top = (
        round((length * target / shown - target) * share)
        for length, target, shown, share in zip(picture.size, size, seen, place, strict=True)
    )
    # Only the cropped part is resized, so that a very long picture takes no more memory than a square one.
    x, y = min(left * seen[0] / columns, width - seen[0]), min(top * seen[1] / rows, height - seen[1])
    cropped = picture.resize(size, Image.Resampling.LANCZOS, box=(x, y, x + seen[0], y + seen[1]))
    return np.array(cropped), PictureSize((height, width), (top, left), (rows, columns))


def _check_size(width: int, height: int, size: int) -> None:
    if width * height > MAX_PIXELS:
        raise PictureError(f"the picture has {width} x {height} pixels; {MAX_PIXELS // 10**6} megapixels are the most")
    if width * height > max(BOMB_PIXELS, BOMB_RATIO * size):
        raise PictureError(f"{size:,} bytes would unpack to {width} x {height} pixels, as no photograph does; save it smaller")
    if min(width, height) < MIN_SIDE:
        raise PictureError(f"the picture has {width} x {height} pixels; {MIN_SIDE} on each side are the least")


def _without_text(data: bytes) -> bytes:
    """Return a PNG without its text chunks. Programs store whole workflows there, and PIL refuses chunks that unpack to over a
    megabyte.
    """
    if not data.startswith(_PNG):
        return data
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _orientation(picture: Image.Image) -> int | None:
    """Return the EXIF rotation; None if there is none or its tags cannot be read, as in files of old cameras and editors."""
    try:
        return picture.getexif().get(_ORIENTATION)
    except Exception:
        return None


def _upright(picture: Image.Image, orientation: int | None) -> Image.Image:
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _srgb(picture: Image.Image) -> Image.Image:
    """Convert the colours of an embedded profile to sRGB. A profile that cannot be read is ignored, as in browsers."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return picture
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            picture.convert("RGB") if alpha else picture,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError):
        return picture
    assert converted is not None  # the function returns a picture unless it changes one in place
    if alpha:
        converted.putalpha(alpha)
    return converted


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F"):
        raise PictureError("the picture has 32 bits per channel, whose white is not defined; save it with 8 or 16 bits")
    if picture.mode.startswith("I;16"):
        # PIL would clip 16-bit grey at 255 and turn nearly everything white.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        return _on_white(picture)
    if picture.mode == "P":
        picture = _with_profile_of(picture, picture.convert("RGB"))
    return _srgb(picture).convert("RGB")


def _on_white(picture: Image.Image) -> Image.Image:
    seen, (width, height) = Image.new("RGB", picture.size), picture.size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        part = _srgb(_with_profile_of(picture, _with_profile_of(picture, strip).convert("RGBA")))
        seen.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
    return seen


def _with_profile_of(picture: Image.Image, converted: Image.Image) -> Image.Image:
    converted.info = picture.info
    return converted

"""Choose the size at which a picture is trained: a pure function of its own size and the settings.

A bucket is a size that several pictures share, so that they fit into one tensor. Pictures are scaled down to cover their bucket.
They are scaled up only if the settings allow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from cpo_ray.config import Pictures
from cpo_ray.config.section import ConfigError

Size = tuple[int, int]
"""(width, height) in pixels."""

#: Shares of the resolution at which aspect buckets exist. A small picture takes the largest bucket that it can fill.
SCALES = (1.0, 0.75, 0.5)

#: Pixels that the VAE encodes in one call, at least one picture. SDXL's VAE takes about 2.5 GiB for them in float32. A shard of
#: small pictures is one call.
ENCODED_PIXELS = 2**20


class Bucket(NamedTuple):
    """A training size in pixels; `resolution` is the side of the square with (nearly) the same area."""

    width: int
    height: int
    resolution: int


@lru_cache
def aspect_buckets(resolution: int, multiple: int) -> tuple[Bucket, ...]:
    """Return all sizes with sides that are multiples, a ratio from 1:2 to 2:1, and 90 to 100 % of the area resolution².

    With 1024 and 64 they are the sizes that SDXL was trained with (Podell et al. 2023, appendix I), within that range of ratios.
    """
    sides, square = range(multiple, 2 * resolution, multiple), resolution**2
    return tuple(
        Bucket(width, height, resolution)
        for width in sides
        for height in sides
        if 0.9 * square <= width * height <= square and max(width, height) <= 2 * min(width, height)
    )


@lru_cache(maxsize=2**16)
def bucket_of(size: Size, resolution: int, pictures: Pictures) -> Bucket | None:
    """Return the bucket of a picture of this size, or None if the picture would have to be scaled up and may not be.

    Raises ConfigError if no size has the area of the resolution.
    """
    if pictures.buckets == "square":
        square = Bucket(resolution, resolution, resolution)
        return square if pictures.upscale or covers(size, square) else None
    for scale in SCALES:
        offered = aspect_buckets(int(scale * resolution), pictures.multiple)
        if not offered and scale == 1:
            raise ConfigError(
                f"no size with sides that are multiples of {pictures.multiple} has the area of {resolution} x {resolution}; "
                "lower data.pictures.multiple"
            )
        if offered:
            # With fine multiples a ratio exists in several sizes; take the largest.
            best = max(offered, key=lambda bucket: (kept(size, bucket), bucket.width * bucket.height))
            if pictures.upscale or covers(size, best):
                return best
    return None


def encoded_together(bucket: Bucket) -> int:
    """Return how many pictures of this size the VAE encodes at a time."""
    return max(1, ENCODED_PIXELS // (bucket.width * bucket.height))


def covers(size: Size, bucket: Bucket) -> bool:
    """Return whether a picture fills the bucket without being scaled up."""
    return size[0] >= bucket.width and size[1] >= bucket.height


def kept(size: Size, bucket: Bucket) -> float:
    """Return the share of a picture that remains when it covers the bucket. The nearest ratio on a log scale keeps most."""
    # Quotients of whole numbers are equal on every machine; logarithms may differ.
    wide, high = size[0] * bucket.height, size[1] * bucket.width
    return min(wide, high) / max(wide, high)


def assign(sizes: Mapping[str, Size], resolution: int, pictures: Pictures) -> dict[str, Bucket]:
    """Return the bucket of each picture by its id. Pictures without a bucket are left out."""
    found = ((name, bucket_of(size, resolution, pictures)) for name, size in sizes.items())
    return {name: bucket for name, bucket in found if bucket is not None}


class Told(NamedTuple):
    """The fate of some pictures as a sentence, with the number that is used and the number that is too small."""

    sentence: str
    used: int
    left_out: int


def told(sizes: Iterable[Size], resolution: int, pictures: Pictures) -> Told:
    """Count pictures of these sizes. Raises as `bucket_of` does."""
    pairs = [(size, bucket_of(size, resolution, pictures)) for size in sizes]
    used = [(size, bucket) for size, bucket in pairs if bucket is not None]
    left_out = len(pairs) - len(used)
    sentence = _used(used, resolution, pictures) if used else "no pictures to train on"
    if left_out:
        least = f"{resolution} x {resolution}" if pictures.buckets == "square" else "half the resolution"
        sentence += f"; smaller than {least} and left out: {left_out} (data.pictures.upscale = true scales them up)"
    return Told(sentence, len(used), left_out)


def _used(pairs: list[tuple[Size, Bucket]], resolution: int, pictures: Pictures) -> str:
    counts = Counter(bucket for _, bucket in pairs)
    (width, height, _), most = counts.most_common(1)[0]
    cut = sum(1 - kept(size, bucket) for size, bucket in pairs) / len(pairs)
    where = f"all at {width} x {height}" if len(counts) == 1 else f"in {len(counts)} sizes, {most} of them at {width} x {height}"
    sentence = f"{len(pairs)} training pictures, {where}; {cut:.1%} of a picture is cropped away on average"
    if pictures.buckets == "aspect" and len(aspect_buckets(resolution, pictures.multiple)) == 1:
        sentence += f" (data.pictures.multiple = {pictures.multiple} leaves one size; a smaller one offers more)"
    if small := sum(bucket.resolution < resolution for _, bucket in pairs):
        sentence += f"; smaller than the resolution and trained at 3/4 or 1/2 of it: {small}"
    if enlarged := sum(not covers(size, bucket) for size, bucket in pairs):
        sentence += f"; scaled up: {enlarged}"
    return sentence

"""At which size a picture is trained, worked out by hand, and that nothing is scaled up unasked."""

from __future__ import annotations

import numpy as np
import pytest

from cpo_ray.config import Pictures
from cpo_ray.config.section import ConfigError
from cpo_ray.data.buckets import Bucket, aspect_buckets, assign, bucket_of, covers, kept, told

ASPECT, ENLARGING = Pictures(buckets="aspect"), Pictures(buckets="aspect", upscale=True)
#: The portraits of SDXL's own list (Podell et al. 2023, appendix I) that are not narrower than 1:2.
SDXL = [(704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088),
        (960, 1024)]  # fmt: skip


def test_the_sizes_at_1024_are_those_of_sdxl() -> None:
    found = {(bucket.width, bucket.height) for bucket in aspect_buckets(1024, 64)}
    assert found == {*SDXL, (1024, 1024), *((height, width) for width, height in SDXL)}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), (1024, 1024, 1024)),
        ((2000, 3000), (832, 1216, 1024)),  # 0.667 lies between 0.6 and 0.684
        ((3000, 2000), (1216, 832, 1024)),
        ((4000, 3000), (1152, 896, 1024)),  # 1.333 is 1.037 times 1.286, and 1.385 is 1.038 times 1.333
        ((1920, 1080), (1344, 768, 1024)),
        ((5000, 1000), (1408, 704, 1024)),  # longer than 2:1
        ((832, 1216), (832, 1216, 1024)),
        ((831, 1216), (640, 896, 768)),  # one pixel too narrow: 3/4 of the resolution, where 0.714 is nearest to 0.683
        ((1023, 1023), (768, 768, 768)),
        ((500, 750), (384, 640, 512)),
        ((512, 512), (512, 512, 512)),
    ],
)
def test_buckets_by_hand(size: tuple[int, int], expected: tuple[int, int, int]) -> None:
    assert bucket_of(size, 1024, ASPECT) == expected
    # With permission the same picture is taken at the whole resolution, the nearest ratio there.
    assert bucket_of(size, 1024, ENLARGING) == max(aspect_buckets(1024, 64), key=lambda bucket: kept(size, bucket))


def test_the_largest_of_equal_ratios_is_taken() -> None:
    fine = Pictures(buckets="aspect", multiple=32)
    assert {(992, 992, 1024), (1024, 1024, 1024)} <= set(aspect_buckets(1024, 32))
    assert bucket_of((2048, 2048), 1024, fine) == (1024, 1024, 1024)


def test_what_is_too_small_has_no_bucket_unless_it_may_be_scaled_up() -> None:
    assert bucket_of((380, 700), 1024, ASPECT) is None  # 384 x 640 is the nearest
    assert bucket_of((380, 700), 1024, ENLARGING) == (704, 1344, 1024)
    square = Bucket(1024, 1024, 1024)
    assert bucket_of((1024, 5000), 1024, Pictures()) == square
    assert bucket_of((1023, 5000), 1024, Pictures()) is None
    assert bucket_of((1023, 5000), 1024, Pictures(upscale=True)) == square
    assert assign({"a": (64, 64), "b": (63, 64)}, 64, Pictures()) == {"a": (64, 64, 64)}


def test_nothing_is_scaled_up_and_little_is_cut_at_any_size() -> None:
    taken = 0
    for width, height in np.random.default_rng(0).integers(16, 4000, (3000, 2)).tolist():
        bucket = bucket_of((width, height), 1024, ASPECT)
        if bucket is None:
            assert min(width, height) < 704  # the longer side of a square half the resolution would be 512
            continue
        taken += 1
        assert covers((width, height), bucket)
        assert bucket.width % 64 == bucket.height % 64 == 0
        if bucket.resolution == 1024 and max(width, height) <= 2 * min(width, height):
            # Neighbours are at most 0.684 / 0.6 apart, so the worst picture lies at 1.068 from both.
            assert kept((width, height), bucket) > 0.936
    assert taken > 2000


def test_the_counts_are_told() -> None:
    sizes = [(2000, 3000)] * 2 + [(1024, 1024), (600, 600), (100, 100)]
    # kept: 0.6667 / 0.6842 = 0.9744 twice, 1 twice; so 1.3 % of a picture is cut on average.
    sentence = (
        "4 training pictures, in 3 sizes, 2 of them at 832 x 1216; 1.3% of a picture is cropped away on average; "
        "smaller than the resolution and trained at 3/4 or 1/2 of it: 1; "
        "smaller than half the resolution and left out: 1 (data.pictures.upscale = true scales them up)"
    )
    assert told(sizes, 1024, ASPECT) == (sentence, 4, 1)
    assert told(sizes, 1024, ENLARGING).sentence.endswith("1.0% of a picture is cropped away on average; scaled up: 2")
    assert told([(64, 64)] * 3, 64, Pictures()) == (
        "3 training pictures, all at 64 x 64; 0.0% of a picture is cropped away on average", 3, 0
    )  # fmt: skip
    assert told([(99, 66)], 64, Pictures(buckets="aspect")).sentence.endswith(
        "multiple = 64 leaves one size; a smaller one offers more)"
    )
    assert told([(63, 64)], 64, Pictures()).sentence.startswith("no pictures to train on; smaller than 64 x 64 and left out: 1 ")


def test_a_resolution_without_sizes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiples of 64 has the area of 40 x 40; lower data\.pictures\.multiple"):
        bucket_of((100, 100), 40, ASPECT)

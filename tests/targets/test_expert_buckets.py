"""Target shards of pictures that are not square, with SDXL and FLUX as diffusers saved them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cpo_ray.config import Pictures
from cpo_ray.config.registry import FAMILIES
from cpo_ray.core.plan import Item
from cpo_ray.core.randomness import counter_generator
from cpo_ray.data.picture import PictureError
from cpo_ray.data.shards import AnnotatedDataset, write_shards
from cpo_ray.data.validate import Origin, annotated_row
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.targets.expert import Expert, ExpertSpec, target_store

RANDOM = Pictures(buckets="aspect", multiple=8, crop="random")
ITEMS = (Item("picture-0", 0), Item("picture-0", 1), Item("picture-1", 0))


@pytest.fixture(params=FAMILIES.names)
def spec(request: pytest.FixtureRequest, expert_spec_of: Callable[[str], ExpertSpec], tmp_path: Path) -> ExpertSpec:
    """Two pictures of 2:3, and one that is too small, taken at random places."""
    spec = expert_spec_of(request.param)
    dataset, tree, rows = AnnotatedDataset.open(spec.dataset), load_hierarchy(spec.hierarchy), []
    for name, size in (("picture-0", (96, 144)), ("picture-1", (96, 144)), ("picture-2", (24, 24))):
        stream = io.BytesIO()
        Image.open(io.BytesIO(dataset.images([name])[0])).resize(size).save(stream, "PNG")
        rows.append(annotated_row(name, stream.getvalue(), dataset.labels(name), Origin("renderer"), tree))
    write_shards(rows, tmp_path / "data")
    return replace(spec, dataset=tmp_path / "data", pictures=RANDOM)


def test_a_shard_of_portraits(spec: ExpertSpec) -> None:
    torch.set_num_threads(1)
    expert, images = Expert(spec), AnnotatedDataset.open(spec.dataset).images([item.sample_id for item in ITEMS])
    shard = expert(ITEMS, images)
    # 2:3 loses least in 48 x 80, which the autoencoder makes four times smaller.
    latents = ("x_t", "target", "reference", "null_minus_reference", "positive_minus_all")
    assert {tuple(shard[name].shape) for name in latents} == {(3, 8, 20, 12)}
    assert all(bool(shard[name].any()) for name in latents)

    again = expert(ITEMS[::-1], images[::-1])
    for name in ("x_t", "target", "timestep", *(name for name in shard if name.startswith("micro."))):
        assert torch.equal(again[name].flip(0), shard[name]), name
    # The clean latents differ between two draws of a picture, since each shows another part.
    process = expert._noising._process(expert._noising._bucket(ITEMS[0]))
    clean = process.predict_x0(shard["x_t"].float(), shard["target"].float(), shard["timestep"])
    assert not torch.allclose(clean[0], clean[1], atol=2e-2)
    if spec.model.family == "sdxl":
        # Scaled to 53.3 x 80, of which 5.3 columns are too many: the crop begins in one of 0 to 5.
        lefts = [round((96 * 80 / 144 - 48) * counter_generator(5, *item, "crop").random(2)[0]) for item in ITEMS]
        assert shard["micro.time_ids"].tolist() == [[144, 96, 0, left, 80, 48] for left in lefts]
        assert lefts[0] != lefts[1]

    with pytest.raises(PictureError, match=r"sample 'picture-2': 24 x 24 pixels are too small for resolution 64"):
        expert([Item("picture-2", 0)], images[:1])


def test_the_address_follows_the_choice_of_size(expert_spec: ExpertSpec, tmp_path: Path) -> None:
    choices = [Pictures(), Pictures(crop="random"), Pictures(buckets="aspect"), RANDOM, Pictures(buckets="aspect", upscale=True)]
    addresses = [target_store(replace(expert_spec, pictures=choice), tmp_path).fingerprint for choice in choices]
    assert len(set(addresses)) == len(choices)
    # Whether small pictures are left out or scaled up, the squares of the others are the same.
    assert target_store(replace(expert_spec, pictures=Pictures(upscale=True)), tmp_path).fingerprint == addresses[0]

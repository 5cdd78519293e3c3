"""The toy data set: labels from the agent, pictures from the renderer, the same again on a second call."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpo_ray.data.importer import import_folder
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.domains.toy.agent import measure
from cpo_ray.domains.toy.dataset import make_dataset
from cpo_ray.domains.toy.render import render, sample_scene
from cpo_ray.hierarchy import Hierarchy, load_hierarchy

COUNT = 40


@pytest.fixture(scope="module")
def toy() -> Hierarchy:
    return load_hierarchy(Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml")


@pytest.fixture(scope="module")
def data(toy: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> AnnotatedDataset:
    return make_dataset(tmp_path_factory.mktemp("toy"), COUNT, 5, toy)


def test_labels_are_what_the_agent_reads_from_the_stored_pixels(data: AnnotatedDataset) -> None:
    scene = sample_scene(np.random.default_rng(5))
    assert data.ids[0] == f"{scene.content.prompt.replace(' ', '-')}-00000"
    for sample_id, image in zip(data.ids, data.images(data.ids), strict=True):
        picture, labels = np.array(Image.open(io.BytesIO(image))), data.labels(sample_id)
        seen = measure(picture, labels.prompt)
        assert (labels.positive_ids, labels.negative_ids) == (seen.positive_ids, seen.negative_ids)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data.images(data.ids[:1])[0]))), render(scene))


def test_positives_and_negatives_stand_side_by_side(data: AnnotatedDataset) -> None:
    labels = [data.labels(sample_id) for sample_id in data.ids]
    assert 2.5 < np.mean([len(label.negative_ids) for label in labels]) < 4.5
    assert np.mean([bool(label.positive_ids and label.negative_ids) for label in labels]) > 0.8


def test_the_import_of_the_same_pictures_sets_none_aside(data: AnnotatedDataset, toy: Hierarchy, tmp_path: Path) -> None:
    with open(tmp_path / "metadata.jsonl", "w") as file:
        for sample_id, image in zip(data.ids, data.images(data.ids), strict=True):
            (tmp_path / f"{sample_id}.png").write_bytes(image)
            labels = data.labels(sample_id)
            entry = {"id": sample_id, "file_name": f"{sample_id}.png", "prompt": labels.prompt}
            file.write(json.dumps(entry | {"positive": labels.positive_ids, "negative": labels.negative_ids}) + "\n")
    report = import_folder(tmp_path, tmp_path / "shards", toy)
    assert (report.kept, report.set_aside) == (COUNT, 0)
    assert AnnotatedDataset.open(tmp_path / "shards").fingerprint == data.fingerprint


def test_a_second_call_changes_nothing(data: AnnotatedDataset, toy: Hierarchy) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.folder.iterdir()}
    again = make_dataset(data.folder, COUNT, 5, toy)
    assert {path: path.stat().st_mtime_ns for path in data.folder.iterdir()} == before
    assert again.fingerprint == data.fingerprint
    with pytest.raises(DataError, match=r"holds another toy data set \(.*\); delete it or choose another folder"):
        make_dataset(data.folder, COUNT, 6, toy)


def test_the_seed_makes_the_data_set(data: AnnotatedDataset, toy: Hierarchy, tmp_path: Path) -> None:
    fewer = make_dataset(tmp_path / "fewer", 10, 5, toy)
    assert fewer.ids == data.ids[:10]
    assert fewer.images(fewer.ids) == data.images(fewer.ids)
    assert make_dataset(tmp_path / "other", 10, 6, toy).ids != fewer.ids


def test_a_folder_of_other_shards_is_left_alone(data: AnnotatedDataset, toy: Hierarchy, tmp_path: Path) -> None:
    shard = tmp_path / "annotated-00000.parquet"
    shard.write_bytes(b"somebody's")
    with pytest.raises(DataError, match="already holds annotated shards"):
        make_dataset(tmp_path, COUNT, 5, toy)
    assert shard.read_bytes() == b"somebody's"

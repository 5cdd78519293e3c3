"""The renderer of the embedded domain: a pure function of the scene, whose labels are valid and visible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cpo_ray.domains.toy.render import (
    ATTRIBUTES,
    BY_PROMPT,
    COLORS,
    CONTENTS,
    CONTRAST,
    MODELLING,
    SURFACE,
    THIRDS,
    Scene,
    render,
    sample_scene,
)
from cpo_ray.hierarchy import Hierarchy, load_hierarchy

GOOD = Scene(BY_PROMPT["red circle over sea"], frozenset(), thirds=False, seed=3)


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return load_hierarchy(Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    generator = np.random.default_rng(11)
    return [sample_scene(generator) for _ in range(4000)]


def test_a_picture_is_a_function_of_its_scene() -> None:
    assert render(GOOD).shape == (64, 64, 3)
    assert render(GOOD).dtype == np.uint8
    np.testing.assert_array_equal(render(GOOD), render(replace(GOOD)))
    assert (render(GOOD) != render(replace(GOOD, seed=4))).any()


def test_sampling_follows_the_generator() -> None:
    first, second, other = (np.random.default_rng(seed) for seed in (5, 5, 6))
    drawn = [sample_scene(first) for _ in range(20)]
    assert drawn == [sample_scene(second) for _ in range(20)]
    assert drawn != [sample_scene(other) for _ in range(20)]


def test_attributes_are_those_of_the_tree_in_its_order(tree: Hierarchy) -> None:
    assert tuple(tree.attributes) == ATTRIBUTES


def test_labels_are_valid_and_disjoint(tree: Hierarchy, scenes: list[Scene]) -> None:
    for scene in scenes:
        assert not tree.problems(scene.positive_ids, scene.negative_ids, scene.content.prompt)
        assert not set(scene.positive_ids) & set(scene.negative_ids)
        assert scene.negative_ids == tuple(a for a in ATTRIBUTES if a in scene.negative)


def test_mean_number_of_negatives(scenes: list[Scene]) -> None:
    assert 3.2 < np.mean([len(scene.negative_ids) for scene in scenes]) < 3.8
    generator = np.random.default_rng(12)
    assert not any(sample_scene(generator, 0.0).negative_ids for _ in range(200))


def test_every_content_is_drawn_and_found_by_its_prompt(scenes: list[Scene]) -> None:
    assert {scene.content for scene in scenes} == set(CONTENTS)
    assert len(BY_PROMPT) == 60


@pytest.mark.parametrize("attribute", [a for a in ATTRIBUTES if a != THIRDS])
def test_each_fault_shows(attribute: str) -> None:
    faulty = render(replace(GOOD, negative=frozenset({attribute})))
    # 25 of 255 is twelve times the deviation of the pixel noise.
    assert (np.abs(faulty.astype(float) - render(GOOD)).max(2) > 25).sum() > 80


def test_thirds_moves_the_subject() -> None:
    def red_centre(scene: Scene) -> np.ndarray:
        y, x = np.nonzero((render(scene).astype(float) @ [1, -1, 0]) > 50)
        return np.array([y.mean(), x.mean()]) + 0.5

    assert np.abs(red_centre(GOOD) - 32).max() < 2.5
    offset = np.abs(red_centre(replace(GOOD, thirds=True)) - 32)
    assert np.abs(offset - 64 / 6).max() < 2


def test_a_flat_smooth_subject_has_its_local_color() -> None:
    flat = render(replace(GOOD, negative=frozenset({MODELLING})))[29:35, 29:35] / 255
    ratio = flat.mean((0, 1)) / np.array(COLORS["red"])
    assert ratio.max() - ratio.min() < 0.05  # one exposure for the three channels
    assert 0.94 < ratio.mean() < 1.06


def test_bands_repeat_every_six_rows() -> None:
    banded = render(replace(GOOD, negative=frozenset({MODELLING, SURFACE})))[20:44, 30:34].mean((1, 2))
    spectrum = np.abs(np.fft.rfft(banded - banded.mean()))
    assert spectrum.argmax() == 24 // 6


def test_washed_is_the_same_picture_under_a_veil() -> None:
    strong, washed = render(GOOD) / 255, render(replace(GOOD, negative=frozenset({CONTRAST}))) / 255
    np.testing.assert_allclose(washed, 0.54 + 0.40 * strong, atol=0.04)

"""The measuring agent, on renders that its limits were not found on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cpo_ray.domains.toy.agent import LIMITS, Measurement, MeasuringAgent, measure
from cpo_ray.domains.toy.calibrate import best_limit, calibrate, round_trip
from cpo_ray.domains.toy.render import (
    ATTRIBUTES,
    BY_PROMPT,
    CENTRAL,
    COMPLETENESS,
    CONTENTS,
    CONTRAST,
    EDGE,
    HORIZON,
    PALETTE,
    SURFACE,
    THIRDS,
    Scene,
    render,
    sample_scene,
)
from cpo_ray.domains.toy.segmentation import fit_ground
from cpo_ray.hierarchy import Hierarchy, load_hierarchy

NEGATIVES = {f"-{a}" for a in ATTRIBUTES if a != THIRDS}
PLACEMENTS = {f"+{THIRDS}", f"+{CENTRAL}"}


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return load_hierarchy(Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml")


def draw(seed: int, count: int, negative_probability: float = 0.5) -> list[Scene]:
    generator = np.random.default_rng(seed)
    return [sample_scene(generator, negative_probability) for _ in range(count)]


def signed(labels: Scene | Measurement) -> set[str]:
    found = {f"-{a}" for a in labels.negative_ids} | {f"+{a}" for a in labels.positive_ids}
    return found & (NEGATIVES | PLACEMENTS)


def precision_and_recall(scenes: list[Scene], read: list[Measurement]) -> dict[str, tuple[float, float]]:
    true, said, both = Counter[str](), Counter[str](), Counter[str]()
    for scene, annotation in zip(scenes, read, strict=True):
        true.update(signed(scene))
        said.update(signed(annotation))
        both.update(signed(scene) & signed(annotation))
    return {label: (both[label] / max(said[label], 1), both[label] / true[label]) for label in true}


def test_reads_held_out_renders(tree: Hierarchy) -> None:
    scenes = draw(2_000, 600)
    prompts = [scene.content.prompt for scene in scenes]
    read = MeasuringAgent().annotate([render(scene) for scene in scenes], prompts)
    for annotation, prompt in zip(read, prompts, strict=True):
        assert not tree.problems(annotation.positive_ids, annotation.negative_ids, prompt)
        placements = {f"+{CENTRAL}", f"+{THIRDS}", f"-{CENTRAL}"} & signed(annotation)
        assert len(placements) == 1
    scores = precision_and_recall(scenes, read)
    assert scores.keys() == NEGATIVES | PLACEMENTS
    assert {label: score for label, score in scores.items() if min(score) < 0.95} == {}


def test_reads_what_the_autoencoder_gives_back() -> None:
    """Every generated picture comes out of it."""
    scenes = draw(3_000, 300)
    read = MeasuringAgent().annotate(round_trip([render(scene) for scene in scenes]), [scene.content.prompt for scene in scenes])
    scores = precision_and_recall(scenes, read)
    # It softens edges, which makes these the hardest to read.
    floors = {label: 0.8 if label == f"-{EDGE}" else 0.9 for label in scores}
    assert {label: score for label, score in scores.items() if min(score) < floors[label]} == {}


def test_good_pictures_read_as_good() -> None:
    read = [measure(render(scene), scene.content.prompt) for scene in draw(4_000, 200, 0.0)]
    assert all(annotation.subject_found for annotation in read)
    assert np.mean([len(annotation.negative_ids) for annotation in read]) < 0.05


def test_garbage_reads_as_bad(tree: Hierarchy) -> None:
    generator = np.random.default_rng(5)
    for content in CONTENTS:
        noise = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for picture in (noise, np.full((64, 64, 3), 128, np.uint8)):
            annotation = measure(picture, content.prompt)
            assert not annotation.subject_found
            assert len(annotation.negative_ids) >= 4
            assert CENTRAL in annotation.negative_ids
            assert not {THIRDS, COMPLETENESS} & {*annotation.positive_ids, *annotation.negative_ids}
            assert not tree.problems(annotation.positive_ids, annotation.negative_ids, content.prompt)


def test_a_white_picture_is_washed_and_not_muddy() -> None:
    annotation = measure(np.full((64, 64, 3), 250, np.uint8), "red circle on grey wall")
    assert CONTRAST in annotation.negative_ids
    assert PALETTE not in annotation.negative_ids


def test_the_prompt_tells_only_what_applies() -> None:
    faults = frozenset({SURFACE, HORIZON})
    picture = render(Scene(BY_PROMPT["red circle over sea"], faults, thirds=False, seed=3))
    circle = measure(picture, "red circle over sea")
    assert measure(picture, "A blue SQUARE, over field.") == circle
    triangle = measure(picture, "red triangle over sea")
    assert signed(triangle) == signed(circle) - {f"-{SURFACE}"}
    assert SURFACE not in triangle.positive_ids
    wall = measure(picture, "red circle on grey wall")
    assert HORIZON not in {*wall.positive_ids, *wall.negative_ids}


@pytest.mark.parametrize("slope", [-0.26, 0.0, 0.1, 0.2])
def test_the_horizon_is_found_behind_a_subject(slope: float) -> None:
    y, x = np.mgrid[0:64, 0:64] + 0.5
    colors = np.where((y > 38 + slope * (x - 32))[..., None], [0.2, 0.5, 0.1], [0.7, 0.9, 1.0])
    colors[20:50, 20:50] = [0.9, 0.1, 0.1]
    ground = fit_ground(colors, landscape=True)
    assert ground.slope == pytest.approx(slope, abs=0.021)
    np.testing.assert_allclose(ground.color[2, 2], [0.7, 0.9, 1.0])
    np.testing.assert_allclose(ground.color[60, 60], [0.2, 0.5, 0.1])


def test_a_strip_along_the_border_is_measured_too() -> None:
    picture = np.full((64, 64, 3), 150, np.uint8)
    picture[:, :5] = [220, 30, 30]
    annotation = measure(picture, "red square on grey wall")
    assert annotation.subject_found
    assert annotation.scalars[CENTRAL] == 64
    assert CENTRAL in annotation.negative_ids


@pytest.mark.parametrize("picture", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3))])
def test_other_pictures_are_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"reads \(64, 64, 3\) uint8 only"):
        measure(picture, "red circle over sea")


def test_unequal_batches_are_refused() -> None:
    with pytest.raises(ValueError):
        MeasuringAgent().annotate([np.zeros((64, 64, 3), np.uint8)], [])


def test_best_limit_by_hand() -> None:
    good, bad = np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0])
    assert best_limit(good, bad, negative_above=True) == (3.5, 0.0)
    assert best_limit(bad, good, negative_above=False) == (3.5, 0.0)
    # One of four good ones lies among the bad ones: cutting below it costs 1/4 of the good, none of the bad.
    limit, error = best_limit(np.array([0.0, 1.0, 2.0, 5.5]), bad, negative_above=True)
    assert (limit, error) == (3.5, 0.125)


def test_calibration_finds_the_shipped_limits_again(capsys: pytest.CaptureFixture[str]) -> None:
    found = calibrate(seed=9, count=150)
    assert found.keys() == LIMITS.keys()
    for attribute, limit in LIMITS.items():
        assert found[attribute] == pytest.approx(limit.value, rel=0.45), attribute
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(LIMITS)

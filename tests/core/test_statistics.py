"""The numbers of an evaluation against closed forms and by simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cpo_ray.core.statistics import (
    bootstrap_interval,
    frechet_distance,
    intersection_over_union,
    mean_by_attribute,
    mean_by_root,
    paired_difference,
)
from cpo_ray.hierarchy import Hierarchy, load_hierarchy

TREE = Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml"
CROSS = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # covariance 2/3 of the unit matrix


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return load_hierarchy(TREE)


def test_a_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    intervals = [bootstrap_interval(generator.normal(3.0, 1.5, 100), seed, resamples=400) for seed in range(200)]
    covered = np.mean([i.low <= 3.0 <= i.high for i in intervals])
    assert 0.90 <= covered <= 0.98
    # Normal theory: 2 · 1.96 · 1.5 / √100.
    assert np.mean([i.high - i.low for i in intervals]) == pytest.approx(0.588, rel=0.05)


def test_a_bootstrap_is_a_function_of_its_seed_and_contains_its_mean() -> None:
    values = [0.1, 1.3, 0.7, 2.2, 5.7]
    first = bootstrap_interval(values, seed=1)
    assert first == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert first.mean == 2.0
    assert first.low < 2.0 < first.high


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_a_bootstrap_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        bootstrap_interval(values, seed=0)


def test_a_paired_difference_is_free_of_what_both_share() -> None:
    shared = np.random.default_rng(0).normal(0, 10, 50)
    difference = paired_difference(shared - 1.5, shared, seed=0)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-1.5, -1.5, -1.5))
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3], seed=0)


def test_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    # Covariances 2/3 · 1 and 2/3 · diag(4, 9), means 5 apart: 25 + 2/3 · ((1 - 2)² + (1 - 3)²).
    other = CROSS * [2.0, 3.0] + [3.0, 4.0]
    assert frechet_distance(CROSS, other) == pytest.approx(25 + 10 / 3)
    assert frechet_distance(other, CROSS) == pytest.approx(25 + 10 / 3)
    assert frechet_distance(other, other) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_holds_for_singular_covariances_that_do_not_commute() -> None:
    # Two lines through the origin, variances 2 and 8, at 60° to each other: 2 + 8 - 2 · √2 · √8 · cos 60° = 6.
    along = np.array([[-1.0], [1.0]])
    a, b = along @ [[1.0, 0.0]], 2 * along @ [[0.5, np.sqrt(0.75)]]
    assert frechet_distance(a, b) == pytest.approx(6)


def test_frechet_distance_of_few_pictures_is_biased_upward() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(4000, 8))
    few, many = (np.mean([frechet_distance(generator.normal(size=(n, 8)), reference) for _ in range(10)]) for n in (40, 400))
    assert few > 5 * many > 0


@pytest.mark.parametrize("other", [np.zeros((1, 2)), np.zeros((4, 3)), np.full((4, 2), np.nan)])
def test_frechet_distance_refuses_what_has_none(other: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="features"):
        frechet_distance(CROSS, other)


@pytest.mark.parametrize(
    ("requested", "found", "expected"),
    [("abc", "bcd", 0.5), ("ab", "ab", 1.0), ("a", "b", 0.0), ("", "a", 0.0), ("", "", 1.0)],
)
def test_intersection_over_union(requested: str, found: str, expected: float) -> None:
    assert intersection_over_union(requested, found) == expected


def test_negatives_per_root_add_up_to_the_mean_number_of_negatives(tree: Hierarchy) -> None:
    negatives = [("brush.ground", "brush.surface", "edge.clarity"), ("brush.ground",), (), ("shape.completeness",)]
    roots, attributes = mean_by_root(negatives, tree), mean_by_attribute(negatives, tree)
    assert roots == {"edge": 0.25, "brush": 0.75, "light": 0, "color": 0, "space": 0, "composition": 0, "shape": 0.25}
    assert sum(roots.values()) == sum(attributes.values()) == 5 / 4
    assert attributes["brush.ground"] == 0.5
    assert "composition.thirds" not in attributes  # it has no negative side

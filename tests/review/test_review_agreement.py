"""The numbers of a review, against published ones and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cpo_ray.core.statistics import Interval
from cpo_ray.review.agreement import (
    cohen_kappa,
    coincidences,
    correlation,
    krippendorff_alpha,
    over_pictures,
    raw_agreement,
    wilson_interval,
)


def numbers(interval: Interval | None) -> tuple[float, float, float]:
    assert interval is not None
    return interval.mean, interval.low, interval.high


def test_wilson_of_independent_trials_is_the_known_one() -> None:
    # 9 of 10: z² = 3.8415; middle (0.9 + 0.19207) / 1.38415, reach 1.95996 / 1.38415 · √(0.009 + 0.0096036)
    assert numbers(wilson_interval([1] * 9 + [0], [1] * 10)) == pytest.approx((0.9, 0.59585, 0.98212), abs=1e-5)
    assert wilson_interval([0, 0], [0, 0]) is None


def test_labels_that_are_right_or_wrong_together_count_once() -> None:
    assert numbers(wilson_interval([2, 2, 0, 2], [2, 2, 2, 2])) == pytest.approx(numbers(wilson_interval([1, 1, 0, 1], [1] * 4)))
    # Where nothing is wrong nobody can tell how alike they are: a picture counts as one. 2 of 2 begins at 1 / (1 + z² / 2).
    assert numbers(wilson_interval([3, 5], [3, 5])) == pytest.approx((1.0, 0.34238, 1.0), abs=1e-5)
    # As evenly spread as can be, they are worth no more than independent ones.
    assert numbers(wilson_interval([1, 1], [2, 2])) == pytest.approx(numbers(wilson_interval([1, 1, 0, 0], [1] * 4)))


def test_alpha_of_krippendorffs_own_example() -> None:
    # Computing Krippendorff's Alpha-Reliability (2011), A: two observers, ten units, alpha 0.095.
    meg, owen = np.array([0, 1, 0, 0, 0, 0, 0, 0, 1, 0]), np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    sums = coincidences(meg + owen, 2 - meg - owen).sum(axis=0)
    assert sums.tolist() == [2, 10, 4]
    assert raw_agreement(sums) == pytest.approx(0.6)
    assert krippendorff_alpha(sums) == pytest.approx(1 - 19 * 4 / (6 * 14)) == pytest.approx(0.095, abs=5e-4)


def test_of_three_reviewers_every_pair_counts_and_of_one_none() -> None:
    # Two confirm, one rejects: one like and two unlike pairs, so that the label weighs three judgements.
    assert coincidences([2, 1, 0], [1, 0, 3]).tolist() == [[1, 0, 1], [0, 0, 0], [0, 3, 0]]
    assert np.isnan(krippendorff_alpha(np.array([6.0, 0, 0])))
    assert np.isnan(raw_agreement(np.zeros(3)))


def test_kappa_of_the_textbook_table() -> None:
    # 35 of 50 alike; by chance 0.5 · 0.6 + 0.5 · 0.4 = 0.5
    assert cohen_kappa(np.array([20.0, 5, 10, 15])) == pytest.approx(0.4)
    assert cohen_kappa(np.array([3.0, 0, 0, 7])) == 1
    assert np.isnan(cohen_kappa(np.array([0.0, 0, 0, 9])))


def test_the_bootstrap_draws_pictures() -> None:
    # Two pictures, one all alike, one all unlike: a resample has 0, 1 or 2 of either, a quarter, a half, a quarter of the time.
    counts = np.array([[4.0, 0, 0], [0, 0, 2]])
    assert numbers(over_pictures(counts, raw_agreement)) == (0.5, 0.0, 1.0)
    same = over_pictures(np.array([[3.0, 1, 1]] * 5), krippendorff_alpha)
    assert same is not None and same.low == pytest.approx(same.high)
    assert over_pictures(np.zeros((4, 3)), raw_agreement) is None
    assert over_pictures(np.array([[2.0, 0, 0]]), krippendorff_alpha) is None


def test_correlation_of_labels() -> None:
    given = np.array([[1, 1, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0]], dtype=bool)
    phi = correlation(given)
    assert phi[0, :4] == pytest.approx([1, 1, -1, 0])
    assert np.isnan(phi[4]).all()

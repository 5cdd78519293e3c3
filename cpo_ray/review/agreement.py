"""The numbers of a review, from counts per picture.  NumPy only.

Labels of one picture are judged by the same eye and tend to be right or wrong together, so pictures and not labels are what the
intervals count or resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpo_ray.core.statistics import Interval

Z = 1.959964  # of a 95 % interval
RESAMPLES = 2000

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def wilson_interval(hits: ArrayLike, trials: ArrayLike) -> Interval | None:
    """Share of hits with its 95 % Wilson interval, from the counts (P,) of each picture; None without trials.

    The interval is that of as many independent trials as the clustered ones are worth: their number by the design effect (Kish
    1965), the variance of the share over pictures by that of independent trials.  Where every trial or none is a hit nothing
    shows how alike those of a picture are, and each picture counts as one.
    """
    hit, tried = np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    count = float(tried.sum())
    if count == 0:
        return None
    share = float(hit.sum()) / count
    if 0 < share < 1:
        effect = float(((hit - share * tried) ** 2).sum()) / (count * share * (1 - share))
        count /= max(effect, 1.0)
    else:
        count = float((tried > 0).sum())
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return Interval(share, max(middle - reach, 0.0), min(middle + reach, 1.0))


def coincidences(confirmed: ArrayLike, rejected: ArrayLike) -> NDArray[np.float64]:
    """Krippendorff's coincidences (L, 3) of labels, from how many reviewers (L,) confirmed and rejected each one.

    The columns are pairs of two confirming, of two rejecting and of unlike judgements, the last in one order only; a label of m
    judgements weighs m in all, and one that a single reviewer judged weighs nothing.
    """
    yes, no = np.asarray(confirmed, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    others = yes + no - 1
    pairs = np.stack([yes * (yes - 1), no * (no - 1), yes * no], axis=-1)
    return pairs / np.maximum(others, 1)[..., None]


def raw_agreement(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share (…) of like pairs among all, from sums (…, 3) of coincidences."""
    return _divide(sums[..., 0] + sums[..., 1], sums[..., 0] + sums[..., 1] + 2 * sums[..., 2])


def krippendorff_alpha(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Agreement beyond chance, nominal, of any number of reviewers, from sums (…, 3) of coincidences; 1 is perfect, 0 chance.

    NaN where all judgements are the same: then nothing tells agreement from habit (Krippendorff, Content Analysis, ch. 12).
    """
    yes, no = sums[..., 0] + sums[..., 2], sums[..., 1] + sums[..., 2]
    return 1 - _divide(sums[..., 2] * (yes + no - 1), yes * no)


def cohen_kappa(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Agreement of two beyond chance from counts (…, 4): both say yes, the first alone, the second alone, neither (Cohen 1960).

    NaN where both always say the same.
    """
    shares = _divide(sums, sums.sum(axis=-1, keepdims=True))
    both, first, second, neither = np.moveaxis(shares, -1, 0)
    a, b = both + first, both + second
    chance = a * b + (1 - a) * (1 - b)
    return _divide(both + neither - chance, 1 - chance)


def over_pictures(counts: NDArray[np.float64], statistic: Statistic, seed: int = 0) -> Interval | None:
    """A statistic of the sums of counts (P, K) with its 95 % bootstrap interval over pictures; None where it is not defined.

    Resamples in which it is not defined are left out.
    """
    table = counts[counts.any(axis=1)]
    if not len(table):
        return None
    value = float(statistic(table.sum(axis=0)))
    if math.isnan(value):
        return None
    generator = np.random.default_rng(seed)
    chances = np.full(len(table), 1 / len(table))
    # A few resamples at a time: how often each picture is drawn in all of them would be gigabytes for a large review.
    drawn = [generator.multinomial(len(table), chances, size=RESAMPLES // 20) @ table for _ in range(20)]
    values = statistic(np.concatenate(drawn))
    low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
    return Interval(value, float(low), float(high))


def correlation(given: NDArray[np.bool_]) -> NDArray[np.float64]:
    """φ (L, L) of all pairs of labels given (N, L) to N pictures; NaN for a label that all have or none."""
    ones = given.astype(np.float32)
    both = (ones.T @ ones).astype(np.float64)
    count = np.diag(both)
    spread = np.sqrt(count * (len(given) - count))
    return _divide(len(given) * both - np.outer(count, count), np.outer(spread, spread))


def _divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(b > 0, a / b, np.nan)

"""Statistics of a review, from counts per picture. NumPy only.

Labels of one picture are judged by the same person at the same time and tend to be right or wrong together. The intervals
therefore count or resample pictures, not labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpo_ray.core.statistics import Interval

Z = 1.959964  # normal quantile for a 95 % interval
RESAMPLES = 2000

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def wilson_interval(hits: ArrayLike, trials: ArrayLike) -> Interval | None:
    """Return the share of hits with its 95 % Wilson interval, from counts (P,) per picture; None without trials.

    Trials of one picture are not independent, so the interval uses the number of independent trials worth as much: the number of
    trials divided by the design effect (Kish 1965), which compares the variance over pictures with that of independent trials. If
    every trial or none is a hit, the data cannot show how alike the trials of one picture are, and each picture counts as one
    trial.
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
    """Return Krippendorff's coincidences (L, 3) of labels, from the numbers of reviewers (L,) who confirmed and rejected each
    label.

    The columns count pairs of two confirmations, of two rejections, and of unlike judgements in one order. A label with m
    judgements has a total weight of m. A label that one reviewer judged has no weight.
    """
    yes, no = np.asarray(confirmed, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    others = yes + no - 1
    pairs = np.stack([yes * (yes - 1), no * (no - 1), yes * no], axis=-1)
    return pairs / np.maximum(others, 1)[..., None]


def raw_agreement(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share (…) of equal pairs among all pairs, from sums (…, 3) of coincidences."""
    return _divide(sums[..., 0] + sums[..., 1], sums[..., 0] + sums[..., 1] + 2 * sums[..., 2])


def krippendorff_alpha(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Krippendorff's nominal alpha for any number of reviewers, from sums (…, 3) of coincidences: 1 is perfect, 0 is
    chance.

    Returns NaN if all judgements are equal, since agreement cannot be told from habit then (Krippendorff, Content Analysis, ch.
    12).
    """
    yes, no = sums[..., 0] + sums[..., 2], sums[..., 1] + sums[..., 2]
    return 1 - _divide(sums[..., 2] * (yes + no - 1), yes * no)


def cohen_kappa(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Cohen's kappa of two raters (Cohen 1960) from counts (…, 4): both yes, only the first, only the second, neither.

    Returns NaN if both raters always say the same.
    """
    shares = _divide(sums, sums.sum(axis=-1, keepdims=True))
    both, first, second, neither = np.moveaxis(shares, -1, 0)
    a, b = both + first, both + second
    chance = a * b + (1 - a) * (1 - b)
    return _divide(both + neither - chance, 1 - chance)


def over_pictures(counts: NDArray[np.float64], statistic: Statistic, seed: int = 0) -> Interval | None:
    """Return a statistic of the summed counts (P, K) with its 95 % bootstrap interval over pictures; None where it is undefined.

    Resamples in which the statistic is undefined are left out.
    """
    table = counts[counts.any(axis=1)]
    if not len(table):
        return None
    value = float(statistic(table.sum(axis=0)))
    if math.isnan(value):
        return None
    generator = np.random.default_rng(seed)
    chances = np.full(len(table), 1 / len(table))
    # A few resamples at a time: the draw counts of all of them would take gigabytes for a large review.
    drawn = [generator.multinomial(len(table), chances, size=RESAMPLES // 20) @ table for _ in range(20)]
    values = statistic(np.concatenate(drawn))
    low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
    return Interval(value, float(low), float(high))


def correlation(given: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return φ (L, L) of all pairs of labels, from label flags (N, L) of N pictures; NaN for a label that all pictures have, or
    none.
    """
    ones = given.astype(np.float32)
    both = (ones.T @ ones).astype(np.float64)
    count = np.diag(both)
    spread = np.sqrt(count * (len(given) - count))
    return _divide(len(given) * both - np.outer(count, count), np.outer(spread, spread))


def _divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(b > 0, a / b, np.nan)

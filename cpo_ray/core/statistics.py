"""Statistics of an evaluation, each with what it can and cannot say. NumPy and SciPy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from cpo_ray.hierarchy import Hierarchy


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: ArrayLike, seed: int, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Return the mean of `values` (N,) with its percentile bootstrap interval.

    Pictures are resampled, so the interval covers other noise for these prompts. It does not cover other prompts or another
    training seed. Raises ValueError for an empty or non-finite sample.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"a bootstrap needs a list of finite numbers, but got shape {sample.shape}: {sample.ravel()[:5]} …")
    generator = np.random.default_rng(seed)
    # One resample at a time: an index table of all resamples would take hundreds of megabytes for a large evaluation.
    means = [sample[generator.integers(sample.size, size=sample.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high))


def paired_difference(a: ArrayLike, b: ArrayLike, seed: int, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Return the mean of a - b with its interval, where a[i] and b[i] share their prompt and noise.

    The difficulty of a prompt cancels in each pair, so this interval is much narrower than those of a and b suggest. Raises
    ValueError if the lengths differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values have shapes {first.shape} and {second.shape}; give one of each per prompt and noise")
    return bootstrap_interval(first - second, seed, resamples, level)


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared Fréchet distance of two samples (N, D) and (M, D), each taken as a Gaussian (the formula of FID):

        |μ_a - μ_b|² + tr Σ_a + tr Σ_b - 2 tr (Σ_a Σ_b)^½

    The estimate is biased upward, by about 1/N: compare only distances of equally many pictures to the same reference sample.
    Raises ValueError for fewer than two rows, for different D and for features that are not finite.
    """
    a, b = np.asarray(features_a, dtype=np.float64), np.asarray(features_b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features have shapes {a.shape} and {b.shape}; both must be (pictures, D) with at least two pictures")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features hold NaN or infinity, so they have no distance; look at the pictures they were taken from")
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    # tr (Σ_a Σ_b)^½ is the sum of the singular values of R_aᵀ R_b where Σ = R Rᵀ.  Unlike a matrix square root of the product it
    # stays real and accurate where a covariance is singular, so no ridge has to be added that would shift the distance.
    cross = linalg.svdvals(root_a.T @ root_b).sum()
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * cross
    return float(max(distance, 0.0))


def frechet_interval(features: ArrayLike, good: ArrayLike, groups: int = 20) -> Interval:
    """Return the squared Fréchet distance of `features` (N, D) to `good` (M, D) with a 95 % interval over the N pictures.

    The interval is 1.96 jackknife errors on each side, leaving out one of `groups` parts at a time. A bootstrap would be wrong
    here: pictures drawn twice push the distance up. Raises ValueError as `frechet_distance` does.
    """
    sample = np.asarray(features, dtype=np.float64)
    if len(sample) < 3:
        raise ValueError(f"a distance with its interval takes three pictures at least, and there are {len(sample)}; draw more")
    distance, parts = frechet_distance(sample, good), min(groups, len(sample))
    members = np.arange(len(sample)) % parts
    without = np.array([frechet_distance(sample[members != part], good) for part in range(parts)])
    error = 1.96 * float(np.sqrt((parts - 1) / parts * ((without - without.mean()) ** 2).sum()))
    return Interval(distance, max(distance - error, 0.0), distance + error)


def _covariance_root(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R (D, D) with R Rᵀ = the sample's covariance."""
    values, vectors = linalg.eigh(np.atleast_2d(np.cov(features, rowvar=False)))
    root: NDArray[np.float64] = vectors * np.sqrt(np.clip(values, 0, None))
    return root


def intersection_over_union(requested: Collection[str], found: Collection[str]) -> float:
    """Return the number of shared ids divided by the number of ids in either, for one picture; Table S6 of CPO is the mean over
    pictures.

    Returns 1 if both are empty, since then they agree.
    """
    union = set(requested) | set(found)
    return len(set(requested) & set(found)) / len(union) if union else 1.0


def mean_by_attribute(negative_ids: Sequence[Iterable[str]], tree: Hierarchy) -> dict[str, float]:
    """Return the share of pictures in which each attribute was found negative, in the tree's order. One-sided attributes are left
    out.
    """
    counts = Counter(i for ids in negative_ids for i in ids)
    return {a.id: counts[a.id] / len(negative_ids) for a in tree.attributes.values() if a.negative is not None}


def mean_by_root(negative_ids: Sequence[Iterable[str]], tree: Hierarchy) -> dict[str, float]:
    """Return the mean number of negatives per picture below each root; the sum over the roots is #A_neg."""
    counts = Counter(tree.root_of(i).id for ids in negative_ids for i in ids)
    return {root.id: counts[root.id] / len(negative_ids) for root in tree.roots}


def format_interval(interval: Interval, *, signed: bool = False) -> str:
    """Format an interval, for example "2.77 [2.61, 2.93]", with a true minus sign."""
    mean, low, high = (f"{x:+.2f}" if signed else f"{x:.2f}" for x in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]".replace("-", "\N{MINUS SIGN}")


def format_number(value: float) -> str:
    """Format a number with three significant digits and no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")

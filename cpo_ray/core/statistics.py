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


#: Rows that are raised to float64 at a time.
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution: its mean (D,), and R (D, K) with R Rᵀ = its covariance."""

    mean: NDArray[np.float64]
    root: NDArray[np.float64]

    @classmethod
    def of(cls, features: ArrayLike) -> Gaussian:
        """Fit one to a sample (N, D), in float64 and block by block, so that the sample may be large and of single precision.

        Raises ValueError for fewer than two rows and for features that are not finite.
        """
        sample = np.asarray(features)
        if sample.ndim != 2 or len(sample) < 2:
            raise ValueError(f"features have shape {sample.shape}; they must be (pictures, D) with at least two pictures")
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(sample), _BLOCK)]
        mean = np.sum([sample[block].sum(0, dtype=np.float64) for block in blocks], axis=0) / len(sample)
        if not np.isfinite(mean).all():
            raise ValueError("features hold NaN or infinity, so they have no distance; look at the pictures they were taken from")
        if len(sample) <= sample.shape[1]:
            return cls(mean, (sample - mean).T / np.sqrt(len(sample) - 1))
        products = np.zeros((mean.size, mean.size))
        for block in blocks:
            products += (sample[block] - mean).T @ (sample[block] - mean)
        values, vectors = linalg.eigh(products / (len(sample) - 1))
        return cls(mean, vectors * np.sqrt(np.clip(values, 0, None)))


def frechet_distance(a: ArrayLike | Gaussian, b: ArrayLike | Gaussian) -> float:
    """Squared Fréchet distance of two normal distributions, given or fitted to samples (N, D) and (M, D) (the formula of FID):

        |μ_a - μ_b|² + tr Σ_a + tr Σ_b - 2 tr (Σ_a Σ_b)^½

    The estimate is biased upward, by about 1/N: compare only distances of equally many pictures to the same reference sample.
    Raises ValueError as `Gaussian.of` does, and for different D.
    """
    one, other = (given if isinstance(given, Gaussian) else Gaussian.of(given) for given in (a, b))
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"features have {one.mean.size} and {other.mean.size} numbers a picture; they must come from one model")
    # tr (Σ_a Σ_b)^½ is the sum of the singular values of R_aᵀ R_b where Σ = R Rᵀ.  Unlike a matrix square root of the product it
    # stays real and accurate where a covariance is singular, so no ridge has to be added that would shift the distance.
    cross = linalg.svdvals(one.root.T @ other.root).sum()
    distance = ((one.mean - other.mean) ** 2).sum() + (one.root**2).sum() + (other.root**2).sum() - 2 * cross
    return float(max(distance, 0.0))


def frechet_interval(features: ArrayLike, good: ArrayLike | Gaussian, groups: int = 20) -> Interval:
    """Return the squared Fréchet distance of `features` (N, D) to `good` (M, D) with a 95 % interval over the N pictures.

    A bootstrap would be wrong here: pictures drawn twice push the distance up. Raises ValueError as `frechet_distance` does.
    """
    sample = np.asarray(features)
    if len(sample) < 3:
        raise ValueError(f"a distance with its interval takes three pictures at least, and there are {len(sample)}; draw more")
    reference = good if isinstance(good, Gaussian) else Gaussian.of(good)
    parts = min(groups, len(sample))
    members = np.arange(len(sample)) % parts
    without = [frechet_distance(sample[members != part], reference) for part in range(parts)]
    return jackknife_interval(frechet_distance(sample, reference), without)


def jackknife_interval(value: float, without: Sequence[float]) -> Interval:
    """Return a number of a whole set with 1.96 jackknife errors on each side, from its values without one part at a time.

    The interval does not go below 0, which no distance and no share does.
    """
    left, parts = np.asarray(without, dtype=np.float64), len(without)
    error = 1.96 * float(np.sqrt((parts - 1) / parts * ((left - left.mean()) ** 2).sum()))
    return Interval(value, max(value - error, 0.0), value + error)


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

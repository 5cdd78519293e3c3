"""Separate ground and subject in a picture of the embedded domain, from the pixels alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cpo_ray.domains.toy.render import SIZE

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Difference from the ground that counts; noise of 0.02 stays below it once smoothed.
SUBJECT_RESIDUAL = 0.055
# Pixels of 4096; the renderer's whole subjects have 600 to 900.
SUBJECT_AREA = (150, 2400)
# Share of the picture that the fitted ground must explain.
LEAST_GROUND = 0.35

ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE]
# Differences of channels beside the channels themselves: bands and shadow change a color's tone more than its
# hue.
_OPPONENTS = np.hstack([0.6 * np.eye(3), np.eye(3) - np.roll(np.eye(3), 1, axis=0)])
# Closing over three rows joins what bands part; opening with a disk wider than a speckle drops the speckles.
_BAND = np.ones((3, 1), bool)
_DISK = np.hypot(*np.mgrid[-2:3, -2:3]) < 2.3
_CORNERS = np.r_[0:10, SIZE - 10 : SIZE]
# Every line a horizon may follow, as the rows it crosses in the 64 columns.
_SLOPES, _HEIGHTS = np.linspace(-0.36, 0.36, 37), np.arange(22, 54.5, 0.5)
_LINES = _HEIGHTS[None, :, None] + _SLOPES[:, None, None] * (np.arange(SIZE) + 0.5 - SIZE / 2)
_LINE_CELLS = np.clip(np.rint(_LINES), 0, SIZE).astype(np.intp) * SIZE + np.arange(SIZE)


@dataclass(frozen=True)
class Ground:
    """The picture as it would be without its subject."""

    color: Array  # (64, 64, 3)
    away: Mask  # (64, 64), not next to the horizon
    slope: float | None  # of the horizon in pixels per pixel; None for a wall, or where no horizon shows
    fits: bool


def fit_ground(colors: Array, landscape: bool) -> Ground:
    """Fit one color for a wall, or for a landscape two colors and the straight line that separates them best."""
    if not landscape:
        color = np.broadcast_to(np.median(colors, axis=(0, 1)), colors.shape)
        explained = np.abs(colors - color).max(2) < 2 * SUBJECT_RESIDUAL
        return Ground(color, np.ones((SIZE, SIZE), bool), None, bool(explained.mean() > LEAST_GROUND))
    # The corners are ground in nearly every placement of the subject, also in cropped ones.
    sky = np.median(colors[:10, _CORNERS], axis=(0, 1))
    land = np.median(colors[-10:, _CORNERS], axis=(0, 1))
    step = float(np.abs(sky - land).max())
    from_sky, from_land = (np.abs(colors - color).max(2) for color in (sky, land))
    # A capped cost makes the subject, far from both colors, indifferent to where the line runs.
    above, below = np.minimum(from_sky, step / 4), np.minimum(from_land, step / 4)
    costs = np.zeros((SIZE + 1, SIZE))
    costs[1:] = np.cumsum(above - below, axis=0)
    best_slope, best_height = np.unravel_index(costs.ravel()[_LINE_CELLS].sum(2).argmin(), _LINES.shape[:2])
    below_line = ROWS + 0.5 - _LINES[best_slope, best_height]
    away = np.abs(below_line) > 3
    is_land = np.where(np.abs(below_line) > 1.5, below_line > 0, from_land < from_sky)
    # A subject in a corner pulls the first guess; what lies near that, on the right side of the line, settles
    # the color.
    sky, land = (
        np.median(colors[side & (far < step / 2)], axis=0) if (side & (far < step / 2)).any() else first
        for side, far, first in ((~is_land, from_sky, sky), (is_land, from_land, land))
    )
    color = np.where(is_land[..., None], land, sky)
    explained = np.abs(colors - color).max(2) < 2 * SUBJECT_RESIDUAL
    seen = step > 2 * SUBJECT_RESIDUAL and explained.mean() > LEAST_GROUND
    return Ground(color, away, float(_SLOPES[best_slope]) if seen else None, bool(seen))


@dataclass(frozen=True)
class Subject:
    """Where the subject is, and how sure each pixel belongs to it."""

    mask: Mask  # (64, 64)
    alpha: Array  # (64, 64), 0 for the ground's color, 1 for the color inside the subject nearby
    depth: Array  # (64, 64), pixels to the contour inside the subject; the picture's border is no contour
    contrast: Array  # (64, 64), distance of those two colors


def find_subject(colors: Array, ground: Ground) -> Subject | None:
    """Return the largest piece that is not ground, or None if nothing of a subject's size stands out."""
    if not ground.fits:
        return None
    away = colors - ground.color
    smooth = ndimage.gaussian_filter(away, (0.7, 0.7, 0)) @ _OPPONENTS
    rough = _largest(np.abs(smooth).max(2) > SUBJECT_RESIDUAL)
    if not SUBJECT_AREA[0] < rough.sum() < SUBJECT_AREA[1]:
        return None
    # The difference inside is carried outward over the contour, so that alpha tells how far each pixel has
    # gone from ground to subject.
    depth = ndimage.distance_transform_edt(rough)
    core = (depth > min(5.0, 0.6 * depth.max())).astype(float)
    weight = ndimage.gaussian_filter(core, 4.0, truncate=6) + 1e-12
    across = ndimage.gaussian_filter(away * core[..., None], (4.0, 4.0, 0), truncate=6) / weight[..., None]
    away, across = away @ _OPPONENTS, across @ _OPPONENTS
    contrast = np.linalg.norm(across, axis=2)
    alpha = ndimage.gaussian_filter((away * across).sum(2) / np.maximum(contrast, 0.05) ** 2, 0.7)
    mask = _largest((depth > 4) | (depth > 0) & (alpha > 0.5))
    if not SUBJECT_AREA[0] < mask.sum() < SUBJECT_AREA[1]:
        return None
    return Subject(mask, alpha, ndimage.distance_transform_edt(mask), contrast)


def _largest(mask: Mask) -> Mask:
    """Return the largest connected piece after joining bands and removing single dots, with its holes filled."""
    padded = ndimage.binary_closing(np.pad(mask, 4, mode="edge"), _BAND)
    opened: Mask = ndimage.binary_opening(padded, _DISK)[4:-4, 4:-4]
    labels, count = ndimage.label(opened)
    if count == 0:
        return opened
    sizes = np.bincount(labels.ravel())[1:]
    filled: Mask = ndimage.binary_fill_holes(labels == 1 + sizes.argmax())
    return filled

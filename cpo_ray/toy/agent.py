"""The measuring agent: reads the quality attributes of a picture of the embedded domain back from its pixels.

It stands where the human or model annotator stands outside of this domain, so it sees a picture and its content prompt and nothing
else.  The prompt only tells which attributes apply.  One scalar is measured per attribute and compared with one limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cpo_ray.toy.render import (
    ATTRIBUTES,
    CENTRAL,
    COMPLETENESS,
    CONTRAST,
    EDGE,
    GROUND,
    HORIZON,
    LANDSCAPES,
    MODELLING,
    PALETTE,
    SIZE,
    SURFACE,
    THIRDS,
    Image,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Limit:
    """A scalar on the far side of `value` makes the attribute negative (for `composition.thirds`: absent)."""

    value: float
    negative_above: bool

    def negative(self, scalar: float) -> bool:
        return scalar > self.value if self.negative_above else scalar < self.value


LIMITS = {
    EDGE: Limit(0.35, negative_above=False),
    GROUND: Limit(0.09, negative_above=True),
    SURFACE: Limit(0.15, negative_above=True),
    MODELLING: Limit(0.45, negative_above=False),
    CONTRAST: Limit(0.49, negative_above=True),
    PALETTE: Limit(0.66, negative_above=False),
    HORIZON: Limit(0.08, negative_above=True),
    CENTRAL: Limit(9.0, negative_above=True),
    THIRDS: Limit(0.5, negative_above=False),
    COMPLETENESS: Limit(0.1, negative_above=True),
}

# What a washed picture is mapped back with before tones inside it are compared: pale = VEIL + GAIN * picture.
VEIL, GAIN = 0.54, 0.40
SUBJECT_RESIDUAL = 0.055  # max-channel difference from the ground; pixel noise after smoothing stays below 0.03
SUBJECT_AREA = (150, 2400)  # pixels of 4096; the renderer's whole subjects have 600 to 900
LEAST_GROUND = 0.35  # share of the picture that the fitted ground must explain

_Y, _X = np.mgrid[0:SIZE, 0:SIZE]
# Differences of channels beside the channels themselves: bands and shadow change a color's tone more than its hue.
_OPPONENTS = np.hstack([0.6 * np.eye(3), np.eye(3) - np.roll(np.eye(3), 1, axis=0)])
_BAND = np.ones((3, 1), bool)
_DISK = np.hypot(*np.mgrid[-2:3, -2:3]) < 2.3
_CORNERS = np.r_[0:10, SIZE - 10 : SIZE]
# Every line a horizon may follow, as the rows it crosses in the 64 columns.
_SLOPES, _HEIGHTS = np.linspace(-0.36, 0.36, 37), np.arange(22, 54.5, 0.5)
_LINES = _HEIGHTS[None, :, None] + _SLOPES[:, None, None] * (np.arange(SIZE) + 0.5 - SIZE / 2)
_LINE_CELLS = np.clip(np.rint(_LINES), 0, SIZE).astype(np.intp) * SIZE + np.arange(SIZE)


@dataclass(frozen=True)
class Annotation:
    """The labels of one picture, ids in hierarchy order, and the scalars they were read from (absent where not measurable)."""

    positive_ids: tuple[str, ...]
    negative_ids: tuple[str, ...]
    scalars: dict[str, float]
    subject_found: bool


class MeasuringAgent:
    """Annotates batches of pictures (64, 64, 3) uint8 sRGB."""

    def annotate(self, pictures: Iterable[Image], prompts: Iterable[str]) -> list[Annotation]:
        return [measure(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]


def measure(picture: Image, prompt: str) -> Annotation:
    """Read the attributes of one picture (64, 64, 3) uint8 sRGB; raises ValueError for any other shape or type.

    A picture without a readable subject gets every attribute of the subject as negative, so that noise cannot pass for good.
    """
    if picture.shape != (SIZE, SIZE, 3) or picture.dtype != np.uint8:
        raise ValueError(
            f"The measuring agent was given a picture of shape {picture.shape} and type {picture.dtype}; "
            f"it reads ({SIZE}, {SIZE}, 3) uint8 only, so resize and convert it first."
        )
    words = set(prompt.split())
    colors = picture / 255.0
    ground = fit_ground(colors, bool(words & LANDSCAPES.keys()))
    subject = find_subject(colors, ground)
    scalars = {CONTRAST: _black_point(colors)}
    washed = LIMITS[CONTRAST].negative(scalars[CONTRAST])
    tones = (colors - VEIL) / GAIN if washed else colors
    scalars[GROUND] = _ground_roughness(tones, ground, subject)
    if ground.slope is not None:
        scalars[HORIZON] = abs(ground.slope)
    if subject is not None:
        scalars |= _subject_scalars(tones, subject)
    negative = {a for a, limit in LIMITS.items() if a not in scalars or limit.negative(scalars[a])}
    applicable = set(ATTRIBUTES) - (set() if words & {"circle", "square"} else {SURFACE})
    applicable -= set() if words & LANDSCAPES.keys() else {HORIZON}
    if washed:
        negative.discard(PALETTE)  # The hierarchy lets one of the two faults stand, and paleness hides the other.
    if CENTRAL in negative:
        applicable -= {THIRDS, COMPLETENESS}
    else:
        applicable.remove(CENTRAL if THIRDS not in negative else THIRDS)
    return Annotation(
        positive_ids=tuple(a for a in ATTRIBUTES if a in applicable - negative),
        negative_ids=tuple(a for a in ATTRIBUTES if a in applicable & negative),
        scalars=scalars,
        subject_found=subject is not None,
    )


@dataclass(frozen=True)
class Ground:
    """The picture as it would be without its subject."""

    color: Array  # (64, 64, 3)
    away: Mask  # (64, 64), not next to the horizon
    slope: float | None  # of the horizon in pixels per pixel; None for a wall, or where no horizon shows
    fits: bool


def fit_ground(colors: Array, landscape: bool) -> Ground:
    """One color for a wall; for a landscape two colors and the straight line that parts them best."""
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
    above, below = np.minimum(from_sky, step / 2), np.minimum(from_land, step / 2)
    costs = np.zeros((SIZE + 1, SIZE))
    costs[1:] = np.cumsum(above - below, axis=0)
    best_slope, best_height = np.unravel_index(costs.ravel()[_LINE_CELLS].sum(2).argmin(), _LINES.shape[:2])
    below_line = _Y + 0.5 - _LINES[best_slope, best_height]
    away = np.abs(below_line) > 3
    is_land = np.where(np.abs(below_line) > 1.5, below_line > 0, from_land < from_sky)
    color = np.where(is_land[..., None], land, sky)
    explained = np.abs(colors - color).max(2) < 2 * SUBJECT_RESIDUAL
    seen = step > 2 * SUBJECT_RESIDUAL and explained.mean() > LEAST_GROUND
    return Ground(color, away, float(_SLOPES[best_slope]) if seen else None, bool(seen))


@dataclass(frozen=True)
class Subject:
    mask: Mask  # (64, 64)
    alpha: Array  # (64, 64), 0 for the ground's color, 1 for the color inside the subject nearby
    depth: Array  # (64, 64), pixels to the contour inside the subject; the picture's border is no contour
    contrast: Array  # (64, 64), distance of those two colors


def find_subject(colors: Array, ground: Ground) -> Subject | None:
    """The largest piece that is not ground, or None where nothing of a subject's size stands out."""
    if not ground.fits:
        return None
    away = colors - ground.color
    smooth = ndimage.gaussian_filter(away, (0.7, 0.7, 0)) @ _OPPONENTS
    rough = _largest(np.abs(smooth).max(2) > SUBJECT_RESIDUAL)
    if not SUBJECT_AREA[0] < rough.sum() < SUBJECT_AREA[1]:
        return None
    # The difference inside is carried outward over the contour, so that alpha tells how far each pixel has gone from ground to subject.
    depth = ndimage.distance_transform_edt(rough)
    core = (depth > min(5.0, 0.6 * depth.max())).astype(float)
    weight = ndimage.gaussian_filter(core, 4.0, truncate=6) + 1e-12
    across = ndimage.gaussian_filter(away * core[..., None], (4.0, 4.0, 0), truncate=6) / weight[..., None]
    away, across = away @ _OPPONENTS, across @ _OPPONENTS
    contrast = np.linalg.norm(across, axis=2)
    alpha = (away * across).sum(2) / np.maximum(contrast, 0.05) ** 2
    mask = _largest((depth > 4) | (depth > 0) & (ndimage.gaussian_filter(alpha, 0.5) > 0.5))
    if not SUBJECT_AREA[0] < mask.sum() < SUBJECT_AREA[1]:
        return None
    return Subject(mask, alpha, ndimage.distance_transform_edt(mask), contrast)


def _largest(mask: Mask) -> Mask:
    """The largest connected piece after bands are joined and single dots taken away, its holes filled."""
    padded = ndimage.binary_closing(np.pad(mask, 4, mode="edge"), _BAND)
    opened = ndimage.binary_opening(padded, _DISK)[4:-4, 4:-4]
    labels, count = ndimage.label(opened)
    if count == 0:
        return opened
    sizes = np.bincount(labels.ravel())[1:]
    return ndimage.binary_fill_holes(labels == 1 + sizes.argmax())


def _black_point(colors: Array) -> float:
    """Tone of the darkest parts; closed along the rows, so that dark speckles do not count and dark bands do."""
    return float(np.percentile(ndimage.grey_closing(colors.min(2), (1, 5)), 4))


def _ground_roughness(tones: Array, ground: Ground, subject: Subject | None) -> float:
    """95th percentile over the ground of the difference from the median of seven pixels in the row."""
    gray = tones.mean(2)
    away = ground.away
    if subject is not None:
        away = away & ~ndimage.binary_dilation(subject.mask, iterations=5)
    if not away.any():
        away = ground.away
    return float(np.percentile(np.abs(gray - ndimage.median_filter(gray, (1, 7)))[away], 95))


def _subject_scalars(tones: Array, subject: Subject) -> dict[str, float]:
    mask, gray = subject.mask, tones.mean(2)
    core = subject.depth > min(3.5, 0.5 * subject.depth.max())
    y, x = _Y[mask], _X[mask]
    border = max(mask[0].sum(), mask[-1].sum(), mask[:, 0].sum(), mask[:, -1].sum())
    inside = tones[core]
    brightest = np.maximum(inside.max(1), 0.02)
    middle = (SIZE - 1) / 2
    return {
        EDGE: _steepness(subject),
        SURFACE: _banding(gray, core),
        MODELLING: _light_slope(gray, core, mask),
        PALETTE: float(np.median((brightest - inside.min(1)) / brightest)),
        CENTRAL: float(border),
        # 0 in the middle, 1 where lines of thirds cross.
        THIRDS: float((abs(x.mean() - middle) + abs(y.mean() - middle)) / (SIZE / 3)),
        COMPLETENESS: _asymmetry(mask),
    }


def _steepness(subject: Subject) -> float:
    """Largest change of alpha within one pixel across the contour, median over the contour."""
    signed = subject.depth - ndimage.distance_transform_edt(~subject.mask)
    normal_y, normal_x = np.gradient(ndimage.gaussian_filter(signed, 1.5))
    contour = subject.mask & (subject.depth < 1.5) & (subject.contrast > 0.08)
    if not contour.any():
        return 0.0
    length = np.hypot(normal_y, normal_x)[contour] + 1e-6
    along = np.arange(-4.5, 5.0, 0.5)[:, None]
    y = _Y[contour] + along * normal_y[contour] / length
    x = _X[contour] + along * normal_x[contour] / length
    within = (y.min(0) >= 0) & (x.min(0) >= 0) & (y.max(0) <= SIZE - 1) & (x.max(0) <= SIZE - 1)
    if not within.any():
        return 0.0
    profile = ndimage.map_coordinates(subject.alpha, [y[:, within], x[:, within]], order=1)
    return float(np.median((profile[2:] - profile[:-2]).max(0)))


def _banding(gray: Array, core: Mask) -> float:
    """Root mean square of the vertical second difference over three pixels, where bands are opposite, by the mean tone."""
    whole = core[:-6] & core[3:-3] & core[6:]
    if not whole.any():
        return 0.0
    second = gray[3:-3] - (gray[:-6] + gray[6:]) / 2
    return float(np.sqrt((second[whole] ** 2).mean()) / max(gray[core].mean(), 0.02))


def _light_slope(gray: Array, core: Mask, mask: Mask) -> float:
    """Slope of the plane that fits the tone inside the subject, by its diameter and mean tone."""
    tone = gray[core]
    plane = np.stack([np.ones(tone.size), _Y[core], _X[core]], 1)
    slope = np.linalg.lstsq(plane, tone, rcond=None)[0][1:]
    return float(np.hypot(*slope) * 2 * np.sqrt(mask.sum() / np.pi) / max(tone.mean(), 0.02))


def _asymmetry(mask: Mask) -> float:
    """One minus the overlap of the subject with its mirror image, for the upright axis that suits it best."""
    area, mirrored = mask.sum(), np.pad(mask[:, ::-1], ((0, 0), (SIZE, SIZE)))
    start = SIZE - round(2 * _X[mask].mean() - (SIZE - 1))
    shared = max((mask & mirrored[:, s : s + SIZE]).sum() for s in range(start - 7, start + 8))
    return float(1 - shared / (2 * area - shared))

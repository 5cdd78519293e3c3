"""Draw the pictures of the embedded domain: one shape on a wall or before a landscape, with good and bad painterly attributes.

Everything is analytic (signed distances, no rasteriser), so a picture takes about a millisecond and is a pure function of its
`Scene`. Attribute ids are those of `hierarchy/painting_toy.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

SIZE = 64
SHAPES = ("circle", "square", "triangle")
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.12),
    "yellow": (0.96, 0.80, 0.10),
    "blue": (0.12, 0.24, 0.86),
    "purple": (0.58, 0.14, 0.66),
}
# Walls have one color, landscapes a sky and a land that meet at the horizon.
WALLS: dict[str, tuple[float, float, float]] = {"grey wall": (0.60, 0.60, 0.62), "green wall": (0.34, 0.58, 0.36)}
LANDSCAPES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "sea": ((0.70, 0.86, 0.96), (0.10, 0.46, 0.56)),
    "field": ((0.74, 0.88, 0.98), (0.26, 0.52, 0.16)),
    "desert": ((0.72, 0.86, 0.98), (0.84, 0.66, 0.42)),
}
GROUNDS = (*WALLS, *LANDSCAPES)

EDGE, GROUND, SURFACE = "edge.clarity", "brush.ground", "brush.surface"
MODELLING, CONTRAST, PALETTE = "light.modelling", "light.contrast", "color.palette"
HORIZON, CENTRAL, THIRDS, COMPLETENESS = "space.horizon", "composition.central", "composition.thirds", "shape.completeness"
ATTRIBUTES = (EDGE, GROUND, SURFACE, MODELLING, CONTRAST, PALETTE, HORIZON, CENTRAL, THIRDS, COMPLETENESS)

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Content:
    """What a picture shows. The content prompt y says exactly this, and nothing about quality."""

    shape: str
    color: str
    ground: str

    @property
    def prompt(self) -> str:
        return f"{self.color} {self.shape} {'on' if self.ground in WALLS else 'over'} {self.ground}"


CONTENTS = tuple(Content(*c) for c in product(SHAPES, COLORS, GROUNDS))
BY_PROMPT = {c.prompt: c for c in CONTENTS}


def contents_of(split: str) -> tuple[Content, ...]:
    """Return the contents of a split: 36 for training, 12 for validation, 12 for the test. Every split has each shape, color and
    ground.
    """
    places = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}[split]

    def place(content: Content) -> int:
        # A Latin square: shape + color + ground, so that no split lacks a word.
        return (SHAPES.index(content.shape) + tuple(COLORS).index(content.color) + GROUNDS.index(content.ground)) % 5

    return tuple(c for c in CONTENTS if place(c) in places)


@dataclass(frozen=True)
class Scene:
    """One picture to draw: content, negative attribute ids, the place of the subject, and the seed of everything incidental."""

    content: Content
    negative: frozenset[str]
    thirds: bool
    seed: int

    @property
    def cropped(self) -> bool:
        return CENTRAL in self.negative

    def applicable(self) -> tuple[str, ...]:
        """The pairs that can be judged on this picture, in hierarchy order."""
        out = [EDGE, GROUND, MODELLING, CONTRAST, PALETTE]
        if self.content.shape != "triangle":
            out.append(SURFACE)
        if self.content.ground in LANDSCAPES:
            out.append(HORIZON)
        out.append(THIRDS if self.thirds and not self.cropped else CENTRAL)
        if not self.cropped:
            out.append(COMPLETENESS)
        return tuple(a for a in ATTRIBUTES if a in out)

    @property
    def positive_ids(self) -> tuple[str, ...]:
        return tuple(a for a in self.applicable() if a not in self.negative)

    @property
    def negative_ids(self) -> tuple[str, ...]:
        return tuple(a for a in self.applicable() if a in self.negative)


def sample_scene(
    generator: np.random.Generator, negative_probability: float = 0.5, contents: tuple[Content, ...] = CONTENTS
) -> Scene:
    """Draw a scene of uniform content, with each applicable negative at the given probability. Washed and muddy exclude each
    other.
    """
    content = contents[generator.integers(len(contents))]
    thirds = bool(generator.random() < 0.5)
    negative = {a for a in ATTRIBUTES if a != THIRDS and generator.random() < negative_probability}
    if {CONTRAST, PALETTE} <= negative:
        negative.discard(CONTRAST if generator.random() < 0.5 else PALETTE)
    if CENTRAL in negative:
        thirds = False
        negative.discard(COMPLETENESS)
    if content.shape == "triangle":
        negative.discard(SURFACE)
    if content.ground in WALLS:
        negative.discard(HORIZON)
    return Scene(content, frozenset(negative), thirds, int(generator.integers(2**31)))


def render(scene: Scene) -> Image:
    """Draw a scene: (64, 64, 3) uint8 sRGB."""
    generator = np.random.default_rng(scene.seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    picture = _ground(scene, generator, x, y)
    radius = generator.uniform(14.5, 17.5)
    cx, cy = _placement(scene, generator, radius)
    if scene.content.shape == "triangle":
        # Its tip is twice as far from the centroid as its base: lower, both stay inside the picture.
        cy += 0.18 * radius
    distance = _distance(scene.content.shape, x - cx, y - cy, radius)
    if COMPLETENESS in scene.negative:
        distance = np.maximum(distance, _bite(generator, scene.content.shape, x - cx, y - cy, radius))
    width = 9.0 if EDGE in scene.negative else 1.2
    alpha = np.clip(0.5 - distance / width, 0, 1)
    alpha = (alpha * alpha * (3 - 2 * alpha))[..., None]
    picture = picture * (1 - alpha) + _subject(scene, generator, x - cx, y - cy, radius) * alpha
    picture = _grade(scene, generator, picture)
    drawn: Image = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return drawn


def _ground(scene: Scene, generator: np.random.Generator, x: Floats, y: Floats) -> Floats:
    horizon = generator.uniform(34, 42)
    slope = 0.0
    if HORIZON in scene.negative:
        slope = generator.choice([-1, 1]) * np.tan(np.radians(generator.uniform(9, 16)))
    if scene.content.ground in WALLS:
        picture = np.broadcast_to(np.array(WALLS[scene.content.ground]), (SIZE, SIZE, 3)).copy()
    else:
        sky, land = (np.array(c) for c in LANDSCAPES[scene.content.ground])
        below = np.clip(y - horizon - slope * (x - SIZE / 2) + 0.5, 0, 1)[..., None]
        picture = sky * (1 - below) + land * below
    picture *= generator.uniform(0.95, 1.05)
    if GROUND in scene.negative:
        count = int(generator.integers(70, 95))
        centres, radii = generator.uniform(0, SIZE, (count, 2)), generator.uniform(1.1, 1.7, count)
        for (sx, sy), r, tone in zip(centres, radii, generator.choice([-0.28, 0.22], count), strict=True):
            near = np.s_[max(int(sy) - 3, 0) : int(sy) + 4, max(int(sx) - 3, 0) : int(sx) + 4]
            picture[near] += tone * np.clip(0.5 + r - np.hypot(x[near] - sx, y[near] - sy), 0, 1)[..., None]
    return picture


def _placement(scene: Scene, generator: np.random.Generator, radius: float) -> tuple[float, float]:
    if scene.cropped:
        # The centre lies close to one border, so that about a quarter of the subject is outside.
        inside, along = generator.uniform(0.3, 0.6) * radius, generator.uniform(22, 42)
        side = int(generator.integers(4))
        near = inside if side % 2 == 0 else SIZE - inside
        return (near, along) if side < 2 else (along, near)
    if scene.thirds:
        cx, cy = generator.choice([SIZE / 3, 2 * SIZE / 3], 2)
        return cx + generator.uniform(-1, 1), cy + generator.uniform(-1, 1)
    return SIZE / 2 + generator.uniform(-1.5, 1.5), SIZE / 2 + generator.uniform(-1.5, 1.5)


def _distance(shape: str, dx: Floats, dy: Floats, radius: float) -> Floats:
    """Signed distance to the shape's outline in pixels, negative inside; areas are about equal over the shapes."""
    distance: Floats
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
        return distance
    if shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
        return distance
    # Upward triangle: three half planes around the centroid.
    sides = [(0.0, 1.0), (np.cos(np.pi / 6), -np.sin(np.pi / 6)), (-np.cos(np.pi / 6), -np.sin(np.pi / 6))]
    distance = np.maximum.reduce([nx * dx + ny * dy for nx, ny in sides]) - 0.67 * radius
    return distance


def _bite(generator: np.random.Generator, shape: str, dx: Floats, dy: Floats, radius: float) -> Floats:
    """Negative signed distance of a round bite centred on the left or right flank."""
    angle = generator.uniform(-0.5, 0.5) + (np.pi if generator.random() < 0.5 else 0.0)
    reach = {"circle": 1.0, "square": 0.95, "triangle": 0.75}[shape] * radius
    size = generator.uniform(0.5, 0.62) * radius
    bitten: Floats = size - np.hypot(dx - reach * np.cos(angle), dy - reach * np.sin(angle))
    return bitten


def _subject(scene: Scene, generator: np.random.Generator, dx: Floats, dy: Floats, radius: float) -> Floats:
    color = np.array(COLORS[scene.content.color]) * generator.uniform(0.95, 1.05)
    shade = np.ones_like(dx)
    if MODELLING not in scene.negative:
        # Lit from the upper left, as painters like it: the far flank keeps a third of the light.
        toward_light = (-0.9 * dx - 0.45 * dy) / radius
        shade = np.clip(0.82 + 0.45 * toward_light, 0.3, 1.3)
    phase = generator.uniform(0, 2 * np.pi)
    if SURFACE in scene.negative:
        shade = shade * (1 + 0.30 * np.sin(2 * np.pi * dy / 6.0 + phase))
    lit = color * np.minimum(shade, 1.0)[..., None]
    # Light beyond the local color turns toward white, as a highlight does.
    shaded: Floats = lit + (1 - lit) * np.clip(shade - 1.0, 0, 1)[..., None]
    return shaded


def _grade(scene: Scene, generator: np.random.Generator, picture: Floats) -> Floats:
    if PALETTE in scene.negative:
        luma = picture @ np.array([0.3, 0.59, 0.11])
        mud = luma[..., None] * np.array([0.92, 0.84, 0.68])
        picture = mud + generator.uniform(0.24, 0.30) * (picture - mud)
    if CONTRAST in scene.negative:
        picture = 0.54 + 0.40 * picture
    return picture + generator.normal(0, 0.008, picture.shape)

"""Draw the tree as SVG: a ring for each level from the centre outwards, a sector for each root, the phrases around the rim.

The drawing is plain SVG 1.1 with one style sheet that follows the page's light or dark scheme. Lengths are in pixels. Angles are
in radians, clockwise from twelve o'clock.
"""

from __future__ import annotations

from colorsys import hls_to_rgb
from dataclasses import dataclass
from math import cos, pi, sin
from xml.sax.saxutils import escape

from cpo_ray.hierarchy.tree import Attribute, Hierarchy, Node

FONT = 13.0
LETTER = 0.52 * FONT  # mean width of a letter, rather too wide than too narrow
PITCH = 1.3 * FONT  # from one phrase to the next along the outer ring
PADDING = 9.0

_STYLE = """
  svg { --ground: #ffffff; --ink: #20242a; --faint: #767d87; background: var(--ground) }
  @media (prefers-color-scheme: dark) { svg { --ground: #15181c; --ink: #e6e8eb; --faint: #8d949e } }
  text { font-family: "Helvetica Neue", Arial, "Liberation Sans", sans-serif; fill: var(--ink); dominant-baseline: central }
  .ground { fill: var(--ground) }
  .sector { stroke: var(--ground); stroke-width: 1.5 }
  .root { fill: #ffffff; font-weight: 600 }
  .bad { fill: var(--faint) }
"""


@dataclass(frozen=True)
class _Sector:
    """A node's piece of a ring: leaves `first` (included) to `last` (excluded), counted over the whole tree."""

    node: Node
    depth: int
    first: int
    last: int
    root: int


def svg(hierarchy: Hierarchy) -> str:
    """Return the whole tree as one SVG document, large enough that no phrase covers another."""
    leaves = list(hierarchy.attributes.values())
    sectors = _sectors(hierarchy)
    rings = _rings(sectors, len(leaves))
    outer = rings[-1] + PADDING
    half = outer + 2 * PADDING + LETTER * max(len(" / ".join(_words(attribute))) for attribute in leaves)
    turn = 2 * pi / len(leaves)
    colors = {root.id: _color(number, len(hierarchy.roots), 0.5) for number, root in enumerate(hierarchy.roots)}
    size = min(1.5, 1.6 * rings[0] / (LETTER * len(hierarchy.name))) * FONT
    parts = [
        *(_sector(sector, rings, turn, len(colors)) for sector in sectors),
        *(_phrases(leaf, (number + 0.5) * turn, outer, colors[leaf.root_id]) for number, leaf in enumerate(leaves)),
        f'<text text-anchor="middle" font-size="{size:.4g}" font-weight="600">{escape(hierarchy.name)}</text>',
    ]
    box = f"{-half:.0f} {-half:.0f} {2 * half:.0f} {2 * half:.0f}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-size="{FONT:.4g}" role="img">'
    title = f"<title>{escape(f'{hierarchy.name} {hierarchy.version}')}</title>"
    description = f"<desc>{escape(hierarchy.description)}</desc>"
    ground = f'<rect class="ground" x="{-half:.0f}" y="{-half:.0f}" width="{2 * half:.0f}" height="{2 * half:.0f}"/>'
    return "\n".join([head, title, description, f"<style>{_STYLE}</style>", ground, *parts, "</svg>", ""])


def _sectors(hierarchy: Hierarchy) -> list[_Sector]:
    found: list[_Sector] = []
    first = 0
    for number, root in enumerate(hierarchy.roots):
        first = _collect(root, 0, first, number, found)
    return found


def _collect(node: Node, depth: int, first: int, root: int, found: list[_Sector]) -> int:
    """Add the sectors of a branch to `found` and return the number of the first leaf after the branch."""
    last = first + len(node.attributes)
    for child in node.children:
        last = _collect(child, depth + 1, last, root, found)
    found.append(_Sector(node, depth, first, last, root))
    return last


def _rings(sectors: list[_Sector], leaves: int) -> list[float]:
    """Return the radii of the rings' borders, from the inner edge of the roots to the outer edge of the deepest nodes.

    A ring is as wide as its longest label. The rings move outwards until the phrases around the rim have room.
    """
    depths = 1 + max(sector.depth for sector in sectors)
    longest = [max(len(sector.node.label) for sector in sectors if sector.depth == depth) for depth in range(depths)]
    widths = [2 * PADDING + LETTER * length for length in longest]
    inner = max(8 * FONT, leaves * PITCH / (2 * pi) - sum(widths))
    return [inner + sum(widths[:depth]) for depth in range(depths + 1)]


def _sector(sector: _Sector, rings: list[float], turn: float, roots: int) -> str:
    # Where the tree is less deep, the last node reaches out to its phrases.
    inner, outer = rings[sector.depth], rings[sector.depth + 1] if sector.node.children else rings[-1]
    start, end = sector.first * turn, sector.last * turn
    color = _color(sector.root, roots, 0.42)
    opacity = (1.0, 0.32, 0.18)[min(sector.depth, 2)]
    shape = f'<path class="sector" fill="{color}" fill-opacity="{opacity}" d="{_ring_piece(inner, outer, start, end)}"/>'
    style = ' class="root"' if sector.depth == 0 else ""
    size = min(FONT, 0.9 * (end - start) * (inner + PADDING))
    words = f'<tspan font-size="{size:.3g}">{escape(sector.node.label)}</tspan>'
    return shape + _along((start + end) / 2, (inner + outer) / 2, "middle", words, style)


def _phrases(attribute: Attribute, angle: float, radius: float, color: str) -> str:
    dot = f'<circle r="2.5" fill="{color}" transform="translate({_point(radius, angle)})"/>'
    good, *bad = map(escape, _words(attribute))
    faint = [f'<tspan class="bad">{phrase}</tspan>' for phrase in bad]
    # The good phrase stands next to its dot on both sides of the picture.
    words = [good, *faint] if angle <= pi else [*faint, good]
    return dot + _along(angle, radius + PADDING, "start", " / ".join(words))


def _words(attribute: Attribute) -> list[str]:
    return [pole.phrase for pole in attribute.poles.values()]


def _along(angle: float, radius: float, anchor: str, words: str, style: str = "") -> str:
    """Draw words along a ray from the centre, turned so that none is upside down."""
    degrees, at = angle * 180 / pi - 90, radius
    if angle > pi:
        degrees, at = degrees - 180, -radius
        anchor = {"start": "end"}.get(anchor, anchor)
    return f'<text{style} transform="rotate({degrees:.2f})" x="{at:.1f}" text-anchor="{anchor}">{words}</text>'


def _ring_piece(inner: float, outer: float, start: float, end: float) -> str:
    # An arc of a whole turn has no direction: stop just before it closes.
    end = min(end, start + 2 * pi - 1e-4)
    wide = int(end - start > pi)
    return (
        f"M{_point(inner, start)}L{_point(outer, start)}A{outer:.1f} {outer:.1f} 0 {wide} 1 {_point(outer, end)}"
        f"L{_point(inner, end)}A{inner:.1f} {inner:.1f} 0 {wide} 0 {_point(inner, start)}Z"
    )


def _point(radius: float, angle: float) -> str:
    return f"{radius * sin(angle):.1f} {-radius * cos(angle):.1f}"


def _color(number: int, count: int, lightness: float) -> str:
    red, green, blue = hls_to_rgb(number / count, lightness, 0.55)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"

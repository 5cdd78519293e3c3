"""Inline SVG charts in the colours of the style sheet (`--series-1` …), so that they follow dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from cpo_ray.core.statistics import Interval

MOST_POINTS = 400  # more points cannot be distinguished at the width of a page


@dataclass(frozen=True)
class Line:
    """One curve: values over steps, with the name of its CSS colour."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    color: str


def interval_mark(interval: Interval, low: float, high: float, reference: float) -> Markup:
    """Draw a dot with its interval on a scale from low to high, and a line at the reference. The numbers stand beside it."""
    width, height = 180, 18

    def x(value: float) -> float:
        return 6 + (width - 12) * (value - low) / max(high - low, 1e-12)

    return Markup(
        f'<svg class="mark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<line class="reference" x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="0" y2="{height}"/>'
        f'<line class="whisker" x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}" y1="9" y2="9"/>'
        f'<circle cx="{x(interval.mean):.1f}" cy="9" r="2.8"/></svg>'
    )


def line_chart(lines: Sequence[Line], description: str) -> Markup:
    """Draw smoothed curves over their faint raw values, with the zero line and each curve's name at its end.

    The scale fits the smoothed curves and most of the raw values, so that one outlier does not flatten the rest.
    """
    width, height, left, right, top, bottom = 460, 230, 58, 62, 12, 30
    smooth = [smoothed(line.values) for line in lines]
    every = np.concatenate([np.asarray(line.values, dtype=float) for line in lines])
    scale = np.concatenate([*smooth, np.quantile(every, [0.02, 0.98]), [0.0]])
    y_ticks = ticks(float(scale.min()), float(scale.max()), 5)
    x_ticks = ticks(0, float(max(max(line.steps) for line in lines)), 5)
    y_low, y_high, x_high = min(y_ticks), max(y_ticks), max(x_ticks)

    def place(step: float, value: float) -> tuple[float, float]:
        y = top + (height - top - bottom) * (y_high - value) / (y_high - y_low)
        return left + (width - left - right) * step / x_high, min(max(y, top), height - bottom)

    parts = [_axes(x_ticks, y_ticks, place, left, width - right, height - bottom)]
    names = []
    for line, even in zip(lines, smooth, strict=True):
        keep = np.unique(np.linspace(0, len(line.steps) - 1, min(MOST_POINTS, len(line.steps))).round().astype(int))
        for kind, values in (("raw", line.values), ("curve", even)):
            path = " ".join("{:.1f},{:.1f}".format(*place(line.steps[i], values[i])) for i in keep)
            parts.append(f'<polyline class="{kind}" style="stroke:var({line.color})" points="{path}"/>')
        names.append((place(line.steps[-1], even[-1])[1], line))
    lowest = -math.inf
    for y, line in sorted(names, key=lambda name: name[0]):
        lowest = max(y, lowest + 14)  # names of curves that end together are pushed apart
        style = f'class="name" style="fill:var({line.color})"'
        parts.append(f'<text {style} x="{width - right + 8}" y="{lowest + 4:.1f}">{escape(line.label)}</text>')
    return figure(width, height, description, parts)


def bar_chart(groups: dict[str, dict[str, float]], colors: dict[str, str], description: str) -> Markup:
    """Draw horizontal bars: a group per root with a bar per model and its value at the end. `colors` has a
    CSS colour per model.
    """
    bar, gap, left, width = 13, 14, 170, 940
    rows = [len(bars) * bar + gap for bars in groups.values()]
    height = sum(rows) + 10
    longest = max(value for bars in groups.values() for value in bars.values()) or 1.0
    parts, y = [], 6.0
    for (group, bars), row in zip(groups.items(), rows, strict=True):
        parts.append(f'<text class="group" x="{left - 12}" y="{y + (row - gap) / 2 + 4:.1f}">{escape(group)}</text>')
        for name, value in bars.items():
            length = (width - left - 60) * value / longest
            style = f'style="fill:var({colors[name]})"'
            parts.append(
                f'<rect {style} x="{left}" y="{y}" width="{max(length, 1):.1f}" height="{bar - 3}" rx="1.5">'
                f"<title>{escape(name)}, {escape(group)}: {value:.2f}</title></rect>"
                f'<text class="value" x="{left + max(length, 1) + 6:.1f}" y="{y + bar - 4}">{value:.2f}</text>'
            )
            y += bar
        y += gap
    parts.append(f'<line class="axis" x1="{left}" x2="{left}" y1="0" y2="{height - 10}"/>')
    return figure(width, height, description, parts)


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Return the centred mean over about a twentieth of the curve (N,), shorter at the ends."""
    array = np.asarray(values, dtype=float)
    reach = min(max(1, len(array) // 40), (len(array) - 1) // 2)
    window = np.ones(2 * reach + 1)
    return np.convolve(array, window, "same") / np.convolve(np.ones_like(array), window, "same")


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers that enclose [low, high], in about `count` steps of 1, 2 or 5 times a power of ten."""
    if low == high:
        high = low + (abs(low) or 1.0)
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= span / count * 0.999)
    return [step * i for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _axes(
    x_ticks: list[float],
    y_ticks: list[float],
    place: Callable[[float, float], tuple[float, float]],
    left: float,
    right: float,
    base: float,
) -> str:
    parts = []
    for value in y_ticks:
        y = place(0, value)[1]
        kind = "zero" if abs(value) < 1e-12 else "grid"
        parts.append(f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick y" x="{left - 8}" y="{y + 4:.1f}">{_tick(value)}</text>')
    for value in x_ticks:
        x = place(value, 0)[0]
        parts.append(f'<text class="tick x" x="{x:.1f}" y="{base + 18:.1f}">{_tick(value)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-12 else "0"


def figure(width: float, height: float, description: str, parts: Sequence[str]) -> Markup:
    """Return the whole chart. `description` is for people who cannot see it."""
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {width} {height}" aria-label="{escape(description)}">'
        + "".join(parts)
        + "</svg>"
    )

"""The charts of a sweep's report: a measure over a searched number, the Pareto front, all trials as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from markupsafe import Markup, escape

from cpo_ray.core.statistics import Interval, format_number
from cpo_ray.reports.charts import figure, ticks

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 44


@dataclass(frozen=True)
class Dot:
    """One trial in a chart; `label` appears when it is pointed at."""

    label: str
    x: Interval
    y: Interval
    best: bool = False
    on_front: bool = False

    @property
    def kind(self) -> str:
        """CSS class."""
        return "best" if self.best else "front" if self.on_front else "other"


class Scale:
    """Maps numbers to an axis from `start` to `end`, in pixels; by magnitude with `log`."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self._log, self._start, self._end = log, start, end
        if log:
            self.ticks = [10.0**e for e in range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)]
            self.ticks = self.ticks if len(self.ticks) > 1 else [self.ticks[0], 10 * self.ticks[0]]
        else:
            self.ticks = ticks(low, high, 5)
        self._low, self._high = self._value(self.ticks[0]), self._value(self.ticks[-1])

    def __call__(self, value: float) -> float:
        share = (self._value(value) - self._low) / (self._high - self._low)
        return self._start + (self._end - self._start) * share

    def _value(self, value: float) -> float:
        return math.log10(value) if self._log else value


def curve_chart(dots: Sequence[Dot], base: Interval | None, names: tuple[str, str], *, joined: bool, log: bool) -> Markup:
    """Draw a measure over a searched number: a dot with its interval per trial, the base as a band.

    With `joined` a line goes through the mean of the trials at each value; other searched numbers may differ between them.
    """
    x, y = _scales(dots, [base] if base else [], log=log)
    parts = [_axes(x, y, names)]
    if base is not None:
        band = f'y="{y(base.high):.1f}" height="{max(y(base.low) - y(base.high), 1):.1f}"'
        parts.append(f'<rect class="band" x="{LEFT}" width="{WIDTH - LEFT - RIGHT}" {band}><title>base</title></rect>')
        parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{y(base.high) + 11:.1f}" text-anchor="end">base</text>')
    if joined:
        by_value: dict[float, list[float]] = {}
        for dot in dots:
            by_value.setdefault(dot.x.mean, []).append(dot.y.mean)
        path = " ".join(f"{x(value):.1f},{y(mean(found)):.1f}" for value, found in sorted(by_value.items()))
        parts.append(f'<polyline class="curve" style="stroke:var(--series-1)" points="{path}"/>')
    parts += [_dot(dot, x, y, across=False) for dot in dots]
    return figure(WIDTH, HEIGHT, f"{names[1]} over {names[0]}: " + "; ".join(_spoken(dot) for dot in dots), parts)


def front_chart(dots: Sequence[Dot], base: Dot | None, names: tuple[str, str], *, leftward: bool = True) -> Markup:
    """Draw two measures against each other. Steps join the front: no trial is better in both than a point on them.

    `leftward` says that less of the measure across is better. The steps need not know which way is better upright.
    """
    x, y = _scales([*dots, *([base] if base else [])], [])
    parts = [_axes(x, y, names)]
    front = sorted((dot for dot in dots if dot.on_front), key=lambda dot: dot.x.mean)
    corners = [(x(dot.x.mean), y(dot.y.mean)) for dot in front]
    path = [corners[0]] if corners else []
    for before, corner in pairwise(corners):
        path += [(corner[0], before[1]) if leftward else (before[0], corner[1]), corner]
    parts.append(f'<polyline class="stairs" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in path)}"/>')
    parts += [_dot(dot, x, y, across=True) for dot in dots]
    if base is not None:
        parts.append(f'<text class="name" x="{x(base.x.mean):.1f}" y="{y(base.y.mean) + 4:.1f}" text-anchor="middle">base</text>')
    return figure(WIDTH, HEIGHT, "Pareto front: " + "; ".join(_spoken(dot) for dot in front), parts)


def parallel_chart(lines: Mapping[str, Sequence[float]], kinds: Sequence[str], labels: Sequence[str], log: set[str]) -> Markup:
    """Draw a vertical axis per column of `lines` (by name, one number per trial) and a line per trial, the best one last."""
    width, height, side, top, bottom = 940, 300, 80, 34, 20
    gap = (width - 2 * side) / max(1, len(lines) - 1)
    scales = [Scale(min(values), max(values), height - bottom, top, name in log) for name, values in lines.items()]
    parts = []
    for number, (name, scale) in enumerate(zip(lines, scales, strict=True)):
        at = side + number * gap
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(f'<text class="tick x" x="{at:.1f}" y="{top - 16}">{escape(name)}</text>')
        for value in scale.ticks:
            parts.append(f'<text class="tick y" x="{at - 6:.1f}" y="{scale(value) + 4:.1f}">{_number(value)}</text>')
    order = {"other": 0, "front": 1, "best": 2}
    for trial in sorted(range(len(labels)), key=lambda i: order[kinds[i]]):
        places = (f"{side + n * gap:.1f},{s(v[trial]):.1f}" for n, (s, v) in enumerate(zip(scales, lines.values(), strict=True)))
        title = f"<title>{escape(labels[trial])}</title>"
        parts.append(f'<polyline class="trial {kinds[trial]}" points="{" ".join(places)}">{title}</polyline>')
    return figure(width, height, "Every trial as a line over what was searched and what was measured", parts)


def _scales(dots: Sequence[Dot], more: Sequence[Interval], log: bool = False) -> tuple[Scale, Scale]:
    """Return scales that hold every interval."""
    heights = [*(dot.y for dot in dots), *more]
    low_x, high_x = min(dot.x.low for dot in dots), max(dot.x.high for dot in dots)
    low_y, high_y = min(i.low for i in heights), max(i.high for i in heights)
    return Scale(low_x, high_x, LEFT, WIDTH - RIGHT, log), Scale(low_y, high_y, HEIGHT - BOTTOM, TOP)


def _axes(x: Scale, y: Scale, names: tuple[str, str]) -> str:
    floor = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>']
    for value in y.ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="tick y" x="{LEFT - 8}" y="{y(value) + 4:.1f}">{_number(value)}</text>')
    parts += [f'<text class="tick x" x="{x(value):.1f}" y="{floor + 18}">{_number(value)}</text>' for value in x.ticks]
    parts.append(f'<text class="tick x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{floor + 36}">{escape(names[0])}</text>')
    parts.append(f'<text class="name" x="{LEFT}" y="{TOP - 4}">{escape(names[1])}</text>')
    return "".join(parts)


def _dot(dot: Dot, x: Scale, y: Scale, across: bool) -> str:
    """Draw a dot with its vertical interval, and a horizontal one with `across`."""
    at, height = x(dot.x.mean), y(dot.y.mean)
    whiskers = f'<line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{y(dot.y.low):.1f}" y2="{y(dot.y.high):.1f}"/>'
    if across:
        whiskers += (
            f'<line class="whisker" x1="{x(dot.x.low):.1f}" x2="{x(dot.x.high):.1f}" y1="{height:.1f}" y2="{height:.1f}"/>'
        )
    circle = f'<circle cx="{at:.1f}" cy="{height:.1f}" r="{5 if dot.best else 4}"/>'
    return f'<g class="dot {dot.kind}">{whiskers}{circle}<title>{escape(_spoken(dot))}</title></g>'


def _number(value: float) -> str:
    """Format a tick: a round number without an exponent, with a true minus sign."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def _spoken(dot: Dot) -> str:
    return f"{dot.label}: {format_number(dot.y.mean)} [{format_number(dot.y.low)}, {format_number(dot.y.high)}]"

"""The heat map of a review's report, in the colours of its style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from cpo_ray.reports.charts import figure


def heat_map(names: Sequence[str], values: NDArray[np.float64], description: str) -> Markup:
    """Draw the lower triangle of symmetric values (L, L) in [-1, 1]: blue above zero, brown below, stronger further from zero.

    `names` label the rows; numbers label the columns. Cells with NaN stay empty.
    """
    cell, top = 24, 8
    left = 50 + 7 * max(map(len, names))
    size = cell * len(names)
    parts = []
    for row, name in enumerate(names):
        y = top + row * cell
        parts.append(
            f'<text class="group" x="{left - 10}" y="{y + 16}">{escape(name)} <tspan class="order">{row + 1}</tspan></text>'
        )
        parts.append(f'<text class="tick x" x="{left + row * cell + cell / 2}" y="{top + size + 16}">{row + 1}</text>')
        for column in range(row):
            value = float(values[row, column])
            if math.isnan(value):
                continue
            color = "--series-1" if value > 0 else "--series-2"
            parts.append(
                f'<rect x="{left + column * cell + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" rx="2" '
                f'style="fill:var({color});fill-opacity:{max(abs(value), 0.04):.2f}">'
                f"<title>{escape(name)}, {escape(names[column])}: {value:.2f}</title></rect>"
            )
    width = left + size + 8
    # A fixed width keeps the type as large as in the other charts, however few rows there are.
    return Markup(f'<div style="width:{width}px">{figure(width, top + size + 26, description, parts)}</div>')

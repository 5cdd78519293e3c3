"""One HTML file that shows what an evaluation found: it holds its own style, pictures and charts, and needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cpo_ray.core.files import write_text
from cpo_ray.evaluation.gate import CONFIGURATIONS, Obedience
from cpo_ray.evaluation.measure import EvaluationResult, ModelResult
from cpo_ray.hierarchy import Hierarchy
from cpo_ray.reports import charts, page

SERIES = tuple(f"--series-{i}" for i in range(7))  # colors of the style sheet
CURVES = ("win", "lose", "distance_to_reference")


@dataclass(frozen=True)
class RunReport:
    """What a report shows.  Without `result`, for a domain that cannot measure, it shows pictures and curves."""

    title: str
    pictures: Mapping[str, Sequence[NDArray[np.uint8]]]
    """By model, the base among them, each (H, W, 3) uint8 sRGB; picture i is of the same content and noise in all."""
    prompts: Sequence[str]
    tree: Hierarchy
    base: str = "base"
    featured: str | None = None
    """The model that the headline is about; without it, the last one."""
    result: EvaluationResult | None = None
    curves: Mapping[str, Path] = field(default_factory=dict)
    """By objective, its metrics.jsonl: one object per optimizer step with step, win, lose and distance_to_reference."""
    obedience: Obedience | None = None
    """What the gate before stage 2 measured of the expert."""
    settings: str = ""
    """The resolved configuration as TOML."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Hashes, versions and times, by name."""
    shown: int = 8
    """Rows of the picture grid."""


def write_report(report: RunReport, file: Path) -> Path:
    """Write the report whole or not at all and return its path.

    Raises ValueError where the models' pictures differ in number, or a curve's file cannot be read.
    """
    write_text(file, render(report))
    return file


def render(report: RunReport) -> str:
    """The report as HTML."""
    counts = {name: len(made) for name, made in report.pictures.items()}
    if set(counts.values()) != {len(report.prompts)} or report.base not in counts:
        raise ValueError(
            f"the report has {len(report.prompts)} prompts and pictures of models {counts}; "
            f"give {report.base!r} and every other model one picture per prompt"
        )
    names = list(report.pictures)
    featured = report.featured or names[-1]
    colors = {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}
    return page.render(
        Path(__file__).with_name("report.html"),
        report=report,
        featured=featured,
        colors=colors,
        headline=_headline(report.result, featured),
        rows=_table_rows(report.result),
        grid=_grid(report),
        curves=[_curve_charts(name, read_curves(path)) for name, path in report.curves.items()],
        bars=_bars(report, colors),
        configurations=CONFIGURATIONS,
        attributes=[a for a in report.tree.attributes.values() if a.negative is not None],
    )


def read_curves(file: Path) -> dict[str, list[float]]:
    """The columns step, win, lose and distance_to_reference of a metrics.jsonl, without lines that lack one or are not finite.

    A step that was written twice, before and after a resume, counts once, as it was last.  Raises ValueError for a line that is
    not a JSON object.
    """
    by_step: dict[float, list[float]] = {}
    for number, text in enumerate(file.read_text().splitlines(), 1):
        try:
            entry = json.loads(text)
            values = [float(entry[key]) for key in CURVES if key in entry]
            step = float(entry["step"])
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(
                f"{file}, line {number} is not a JSON object of one step: {error}; remove the line or the file"
            ) from None
        if len(values) == len(CURVES) and all(map(math.isfinite, values)):
            by_step[step] = values
    columns = zip(*([step, *by_step[step]] for step in sorted(by_step)), strict=True)
    return dict(zip(("step", *CURVES), map(list, columns), strict=False))


def _headline(result: EvaluationResult | None, featured: str) -> dict[str, ModelResult] | None:
    if result is None or featured not in result.models or featured == result.base:
        return None
    return {"before": result.models[result.base], "after": result.models[featured]}


def _table_rows(result: EvaluationResult | None) -> list[tuple[str, ModelResult, Markup]]:
    if result is None:
        return []
    ends = [end for m in result.models.values() for end in (m.negatives.low, m.negatives.high)]
    reference = result.models[result.base].negatives.mean
    marks = {n: charts.interval_mark(m.negatives, min(ends), max(ends), reference) for n, m in result.models.items()}
    return [(name, model, marks[name]) for name, model in result.models.items()]


def _grid(report: RunReport) -> list[dict[str, Any]]:
    """Rows of a prompt and one cell per model.  Evenly spaced over the list, so that nobody chose them by their looks."""
    count = min(report.shown, len(report.prompts))
    chosen = np.linspace(0, len(report.prompts) - 1, count).round().astype(int).tolist()
    return [
        {"prompt": report.prompts[i], "cells": [_cell(report, name, i) for name in report.pictures]}
        for i in dict.fromkeys(chosen)
    ]  # fmt: skip


def _cell(report: RunReport, name: str, index: int) -> dict[str, Any]:
    picture = report.pictures[name][index]
    cell = {
        "model": name,
        "image": page.data_uri(picture),
        "pixelated": max(picture.shape) <= 128,
        "good": [],
        "bad": [],
        "measured": False,
    }
    if report.result is not None and name in report.result.models:
        labels = report.result.models[name].labels[index]
        cell["good"] = [report.tree.phrase(f"+{i}") for i in labels.positive_ids]
        cell["bad"] = [report.tree.phrase(f"-{i}") for i in labels.negative_ids]
        cell["measured"] = True
    return cell


def _curve_charts(name: str, columns: dict[str, list[float]]) -> dict[str, Any]:
    if not columns:
        return {"name": name, "parts": None, "distance": None}
    steps = columns["step"]
    parts = [charts.Line("win", steps, columns["win"], "--good"), charts.Line("lose", steps, columns["lose"], "--bad")]
    away = [charts.Line("distance", steps, columns["distance_to_reference"], "--series-1")]
    ends = {key: charts.smoothed(columns[key])[-1] for key in CURVES}
    return {
        "name": name,
        "parts": charts.line_chart(parts, f"{name}: win part ends at {ends['win']:.3g}, lose part at {ends['lose']:.3g}"),
        "distance": charts.line_chart(away, f"{name}: distance to the reference ends at {ends['distance_to_reference']:.3g}"),
    }


def _bars(report: RunReport, colors: dict[str, str]) -> Markup | None:
    if report.result is None:
        return None
    models = report.result.models
    groups = {root.label: {name: model.by_root[root.id] for name, model in models.items()} for root in report.tree.roots}
    return charts.bar_chart(
        groups, colors, "Mean negatives per picture below each root, a bar per model; the table below has the numbers"
    )

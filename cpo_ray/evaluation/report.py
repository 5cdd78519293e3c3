"""The report of an evaluation: one HTML file with its own style, pictures and charts that needs no network."""

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
from cpo_ray.core.statistics import mean_by_attribute, mean_by_root
from cpo_ray.evaluation.gate import CONFIGURATIONS, Obedience
from cpo_ray.evaluation.measure import Comparison
from cpo_ray.evaluation.tables import cells, heads
from cpo_ray.hierarchy import Hierarchy
from cpo_ray.reports import charts, page

SERIES = tuple(f"--series-{i}" for i in range(7))  # colors of the style sheet
CURVES = ("win", "lose", "distance_to_reference")


@dataclass(frozen=True)
class RunReport:
    """What a report shows. Without `result`, for a domain that cannot measure, it shows pictures and curves."""

    title: str
    pictures: Mapping[str, Sequence[NDArray[np.uint8]]]
    """Pictures by model, the base among them, each (H, W, 3) uint8 sRGB. Picture i has the same content and noise in all."""
    prompts: Sequence[str]
    tree: Hierarchy
    base: str = "base"
    featured: str | None = None
    """The model of the headline; by default the last one."""
    result: Comparison | None = None
    curves: Mapping[str, Path] = field(default_factory=dict)
    """The metrics.jsonl of each objective: one object per optimizer step with step, win, lose and distance_to_reference."""
    obedience: Obedience | None = None
    """Result of the gate before stage 2."""
    settings: str = ""
    """The resolved configuration as TOML."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Hashes, versions and times, by name."""
    shown: int = 8
    """Rows of the picture grid."""


def write_report(report: RunReport, file: Path) -> Path:
    """Write the report whole or not at all, and return its path.

    Raises ValueError if the models' pictures differ in number, or a curve's file cannot be read.
    """
    write_text(file, render(report))
    return file


def render(report: RunReport) -> str:
    """Return the report as HTML."""
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
        table=_table(report.result),
        grid=_grid(report),
        curves=[_curve_charts(name, read_curves(path)) for name, path in report.curves.items()],
        bars=_bars(report, colors),
        configurations=CONFIGURATIONS,
        attributes=[a for a in report.tree.attributes.values() if a.negative is not None],
        by_attribute={name: mean_by_attribute(ids, report.tree) for name, ids in _negatives(report).items()},
    )


def read_curves(file: Path) -> dict[str, list[float]]:
    """Return the columns step, win, lose and distance_to_reference of a metrics.jsonl. Incomplete and non-finite lines are left
    out.

    A step written twice, before and after a resume, counts once, as written last. Raises ValueError for a line that is not a JSON
    object.
    """
    by_step: dict[float, list[float]] = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
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


def _headline(found: Comparison | None, featured: str) -> list[dict[str, Any]]:
    """Return a card per scorer: the base's number, the featured model's, and whether they differ beyond doubt."""
    if found is None or featured not in found.models or featured == found.base:
        return []
    before, after = found.models[found.base], found.models[featured]
    cards = []
    for scorer in found.scorers:
        change, interval = after.changes.get(scorer.name), after.intervals[scorer.name]
        cards.append(
            {
                "title": scorer.title,
                "meaning": scorer.meaning,
                "before": scorer.text(before.intervals[scorer.name].mean),
                "after": scorer.text(interval.mean),
                "change": None if change is None else scorer.interval_text(change, signed=True),
                "uncertain": change is not None and change.low <= 0 <= change.high,
                "interval": scorer.interval_text(interval),
                "better": scorer.better,
            }
        )
    return cards


def _table(found: Comparison | None) -> dict[str, Any] | None:
    """Return the one table, with a mark for the first scorer's interval beside the base's."""
    if found is None or not found.scorers:
        return None
    first = found.scorers[0].name
    intervals = {name: model.intervals[first] for name, model in found.models.items()}
    ends = [end for interval in intervals.values() for end in (interval.low, interval.high)]
    reference = intervals[found.base].mean
    return {
        "heads": heads(found.scorers, found.base),
        "rows": [
            (name, charts.interval_mark(intervals[name], min(ends), max(ends), reference), cells(found.scorers, model))
            for name, model in found.models.items()
        ],
        "meanings": [(scorer.title, scorer.meaning, scorer.better) for scorer in found.scorers],
    }


def _grid(report: RunReport) -> list[dict[str, Any]]:
    """Return rows of a prompt and one cell per model, evenly spaced over the list, so that nobody chose them by their looks."""
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
        "unread": False,
    }
    if report.result is not None and name in report.result.labels:
        labels = report.result.labels[name][index]
        if labels is None:
            return cell | {"unread": True}
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


def _negatives(report: RunReport) -> dict[str, list[tuple[str, ...]]]:
    """Return the negative attributes of each picture by model, of those pictures whose labels were read."""
    found = report.result.labels if report.result else {}
    negatives = {name: [one.negative_ids for one in labels if one is not None] for name, labels in found.items()}
    return {name: ids for name, ids in negatives.items() if ids}


def _bars(report: RunReport, colors: dict[str, str]) -> Markup | None:
    negatives = _negatives(report)
    if not negatives:
        return None
    by_root = {name: mean_by_root(ids, report.tree) for name, ids in negatives.items()}
    groups = {root.label: {name: means[root.id] for name, means in by_root.items()} for root in report.tree.roots}
    return charts.bar_chart(
        groups, colors, "Mean negatives per picture below each root, a bar per model; the table below has the numbers"
    )

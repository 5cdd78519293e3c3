"""The report of a sweep: one HTML file with its own style, charts and pictures that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cpo_ray.config.sweep.axis import Axis, symbols
from cpo_ray.core.files import write_text
from cpo_ray.core.statistics import Interval
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.measure import Scores
from cpo_ray.evaluation.scorers.base import Scorer
from cpo_ray.evaluation.tables import cells, heads
from cpo_ray.reports import page
from cpo_ray.sweep.charts import Dot, curve_chart, front_chart, parallel_chart
from cpo_ray.sweep.results import TrialRow
from cpo_ray.sweep.space import value_text


@dataclass(frozen=True)
class SweepReport:
    """What the report of a sweep shows. `rule` says in words how the best trial was chosen."""

    title: str
    rows: Sequence[TrialRow]
    base: Scores | None
    axes: Mapping[str, Axis]
    rule: str
    scorers: Sequence[Scorer]
    goals: Sequence[Scorer]
    """The scorers that the sweep goes by, one or two."""
    prompts: Sequence[str]
    """Prompts of the pictures that are shown."""
    pictures: Mapping[str, Sequence[Picture]]
    """Pictures by label, in the order of the columns: the base, then trials by ω. Picture i shows prompts[i]."""
    facts: Mapping[str, str]
    settings: str


def write_sweep_report(report: SweepReport, file: Path) -> Path:
    """Write the report whole or not at all, and return its path."""
    measured = [row for row in report.rows if row.scores is not None]
    text = page.render(
        Path(__file__).with_name("report.html"),
        report=report,
        measured=measured,
        best=next((row for row in report.rows if row.best), None),
        curves=_curves(measured, report) if measured else [],
        front=_front(measured, report) if measured and len(report.goals) > 1 else None,
        parallel=_parallel(measured, report) if len(measured) > 1 else None,
        heads=heads(report.scorers, "base"),
        cells={row.trial.id: cells(report.scorers, row.scores) for row in report.rows},
        base_cells=cells(report.scorers, report.base),
        grid=_grid(report),
    )
    write_text(file, text)
    return file


def _curves(rows: Sequence[TrialRow], report: SweepReport) -> list[tuple[str, list[Markup]]]:
    """Draw all scores over every searched number. Only lists of values are joined by a line."""
    found = []
    for name, symbol in symbols(report.axes).items():
        axis = report.axes[name]
        there = [row for row in rows if name in row.trial.point]
        if not axis.numbers or not there:
            continue
        charts = []
        for scorer in report.scorers:
            dots = [_dot(row, _place(row, name, axis), _score(row.scores, scorer)) for row in there]
            base = None if report.base is None else _score(report.base, scorer)
            charts.append(curve_chart(dots, base, (symbol, scorer.title), joined=bool(axis.values), log=axis.by_magnitude))
        found.append((symbol, charts))
    return found


def _front(rows: Sequence[TrialRow], report: SweepReport) -> Markup:
    """Draw the two goals against each other, the first one upright."""
    first, second = report.goals
    dots = [_dot(row, _score(row.scores, second), _score(row.scores, first)) for row in rows]
    start = None if report.base is None else Dot("base", _score(report.base, second), _score(report.base, first))
    names = (f"{second.title} ({second.better} is better)", f"{first.title} ({first.better} is better)")
    return front_chart(dots, start, names, leftward=second.better == "lower")


def _parallel(rows: Sequence[TrialRow], report: SweepReport) -> Markup:
    """Draw every setting that all trials have. Texts, true and false stand at their place in the list of values."""
    lines: dict[str, list[float]] = {}
    log = set()
    for name, symbol in symbols(report.axes).items():
        axis = report.axes[name]
        if all(name in row.trial.point for row in rows):
            head = symbol if axis.numbers else " / ".join(map(value_text, axis.values))
            lines[head] = [_place(row, name, axis).mean for row in rows]
            log |= {head} if axis.by_magnitude else set()
    lines |= {scorer.title: [_score(row.scores, scorer).mean for row in rows] for scorer in report.scorers}
    return parallel_chart(lines, [_kind(row) for row in rows], [row.label for row in rows], log)


def _grid(report: SweepReport) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompt,
            "cells": [
                {"label": label, "image": page.data_uri(made[i]), "pixelated": max(made[i].shape) <= 128}
                for label, made in report.pictures.items()
            ],
        }
        for i, prompt in enumerate(report.prompts)
    ]


def _dot(row: TrialRow, x: Interval, y: Interval) -> Dot:
    return Dot(row.label, x, y, row.best, row.on_front)


def _kind(row: TrialRow) -> str:
    return "best" if row.best else "front" if row.on_front else "other"


def _place(row: TrialRow, name: str, axis: Axis) -> Interval:
    """Return a trial's place on an axis: its number, or the place of its value in the list."""
    value = row.trial.point[name]
    place = float(value if axis.numbers else axis.values.index(value))
    return Interval(place, place, place)


def _score(found: Scores | None, scorer: Scorer) -> Interval:
    assert found is not None
    return found.intervals[scorer.name]

"""What came out of a sweep: one row per trial, the Pareto front, the choice, a Parquet file and the configuration of the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.config import Config
from cpo_ray.config.sweep import Sweep
from cpo_ray.core.files import written
from cpo_ray.core.statistics import Interval, bootstrap_interval, format_interval, format_number, paired_difference
from cpo_ray.evaluation.measure import evaluation_section
from cpo_ray.sweep.records import Measured, Rung, Trial
from cpo_ray.sweep.space import Point, label, parameters, point_config

#: Rule of `sweep.choice` → what it takes, for people; `slack` is filled in.
RULES = {
    "bounded": "fewest negatives among the trials whose distance exceeds the smallest by at most {slack:.0%}",
    "negatives": "fewest negatives",
    "distance": "smallest distance to good pictures",
    "knee": "the point of the front nearest to the ideal, both measures scaled to 0 … 1",
}
_HEADS = ("trial", "#A_neg [95 %]", "change vs base [95 %]", "content", "distance [95 %]")
_INTERVALS = ("negatives", "change", "content", "distance")


@dataclass(frozen=True)
class Scores:
    """A model's validation pictures with 95 % intervals over them; `change` is that of #A_neg to the base, picture by picture."""

    negatives: Interval
    change: Interval | None
    content: Interval
    distance: Interval


@dataclass(frozen=True)
class TrialRow:
    """A trial at the last rung it reached; `parameters` are all that a sweep can search, searched or not."""

    trial: Trial
    parameters: Point
    step: int
    scores: Scores | None
    held_out: dict[str, float]
    on_front: bool = False
    best: bool = False

    @property
    def label(self) -> str:
        return label(self.trial.point)


def scores(measured: Measured, base: Measured | None) -> Scores:
    """Intervals of what was measured; without `base` this is the base."""
    return Scores(
        negatives=bootstrap_interval(measured.negatives, seed=0),
        change=None if base is None else paired_difference(measured.negatives, base.negatives, seed=0),
        content=bootstrap_interval(measured.content, seed=0),
        distance=measured.distance,
    )


def make_rows(config: Config, trials: Sequence[tuple[Trial, Sequence[Rung]]], base: Measured | None) -> list[TrialRow]:
    """Rows in the order of the trials' parameters, with the front and the best among the finished ones marked."""
    rows = []
    for trial, rungs in trials:
        last = rungs[-1] if rungs else Rung(0, {}, None)
        measured = None if last.measured is None else scores(last.measured, base)
        rows.append(TrialRow(trial, parameters(point_config(config, trial.point)), last.step, measured, last.held_out))
    rows.sort(key=lambda row: tuple(row.parameters.values()))
    compared = [i for i, row in enumerate(rows) if row.trial.status == "finished" and row.scores is not None]
    assert config.sweep is not None
    values = [(s.negatives.mean, s.distance.mean) for i in compared if (s := rows[i].scores) is not None]
    front, best = pareto_front(values), choose(values, config.sweep)
    for place, i in enumerate(compared):
        rows[i] = replace(rows[i], on_front=place in front, best=place == best)
    return rows


def pareto_front(values: Sequence[tuple[float, float]]) -> set[int]:
    """Which of the pairs, both of them better when smaller, no other pair is better than in one and at least as good in both."""

    def dominated(pair: tuple[float, float]) -> bool:
        return any(other != pair and other[0] <= pair[0] and other[1] <= pair[1] for other in values)

    return {i for i, pair in enumerate(values) if not dominated(pair)}


def choose(values: Sequence[tuple[float, float]], sweep: Sweep) -> int | None:
    """The best of (negatives, distance) pairs by `sweep.choice`; None where there are none. What ties is decided by the other."""
    if not values:
        return None
    candidates = sorted(pareto_front(values))
    if sweep.choice == "negatives":
        return min(candidates, key=lambda i: values[i])
    if sweep.choice == "distance":
        return min(candidates, key=lambda i: values[i][::-1])
    if sweep.choice == "bounded":
        bound = (1 + sweep.slack) * min(distance for _, distance in values)
        return min((i for i in candidates if values[i][1] <= bound), key=lambda i: values[i])
    lows = [min(values[i][side] for i in candidates) for side in (0, 1)]
    spans = [max(values[i][side] for i in candidates) - lows[side] or 1.0 for side in (0, 1)]
    return min(candidates, key=lambda i: sum(((values[i][side] - lows[side]) / spans[side]) ** 2 for side in (0, 1)))


def rule(sweep: Sweep) -> str:
    """The choice rule in words."""
    return RULES[sweep.choice].format(slack=sweep.slack)


def best_config(config: Config, best: TrialRow, expert: Path) -> Config:
    """The best point as a run of its own for `jobs/train_cpo.py`: the same expert, the same targets, the test's prompts."""
    chosen = point_config(config, best.trial.point)
    return chosen.model_copy(
        update={
            "run": chosen.run.model_copy(update={"name": f"{config.run.name}-best"}),
            "expert": chosen.expert.model_copy(update={"adapter": expert.absolute()}),
            "sweep": None,
        }
    )


def write_parquet(rows: Sequence[TrialRow], base: Scores | None, file: Path) -> None:
    """One line per trial, and one with the id "base"; intervals as `<name>`, `<name>_low` and `<name>_high`."""
    lines = [_line(row) for row in rows]
    if base is not None:
        lines.append({"id": "base", "label": "base", "status": "finished", "step": 0, **_flat(base)})
    held_out = sorted({name for row in rows for name in row.held_out})
    with written(file) as stream:
        pq.write_table(pa.Table.from_pylist(lines, _schema(held_out)), stream)


def table(rows: Sequence[TrialRow], base: Scores | None) -> str:
    """Aligned plain text, one trial to a line: ● the best, ○ on the Pareto front."""
    heads = ("", *_HEADS, "steps", "")
    body = [("", "base", *_cells(base), "", "")] if base is not None else []
    body += [
        (
            "●" if row.best else "○" if row.on_front else "",
            row.label,
            *_cells(row.scores),
            str(row.step),
            "" if row.trial.status == "finished" else row.trial.status,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    lines = []
    for cells in (heads, *body):
        left = [cells[0].ljust(widths[0]), cells[1].ljust(widths[1])]
        middle = [cell.rjust(width) for cell, width in zip(cells[2:-1], widths[2:-1], strict=True)]
        lines.append("  ".join([*left, *middle, cells[-1]]).rstrip())
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def card_section(row: TrialRow, base: Scores, pictures: int) -> str:
    """What a trial's model card says of it beside the base: Markdown."""
    return evaluation_section("validation", pictures, _HEADS, [("base", *_cells(base)), (row.label, *_cells(row.scores))])


def _cells(found: Scores | None) -> tuple[str, str, str, str]:
    if found is None:
        return "", "", "", ""
    distance = f"{format_number(found.distance.mean)} [{format_number(found.distance.low)}, {format_number(found.distance.high)}]"
    change = "" if found.change is None else format_interval(found.change, signed=True)
    return format_interval(found.negatives), change, f"{found.content.mean:.3f}", distance


def _line(row: TrialRow) -> dict[str, Any]:
    return {
        "id": row.trial.id,
        "label": row.label,
        **row.parameters,
        "status": row.trial.status,
        "sentence": row.trial.sentence,
        "step": row.step,
        "seconds": row.trial.seconds,
        "on_front": row.on_front,
        "best": row.best,
        "mlflow_run_id": row.trial.mlflow_run_id,
        **({} if row.scores is None else _flat(row.scores)),
        **{f"held_out_{name}": value for name, value in row.held_out.items()},
    }


def _flat(found: Scores) -> dict[str, float]:
    intervals = {name: interval for name in _INTERVALS if (interval := getattr(found, name)) is not None}
    return {
        f"{name}{suffix}": getattr(interval, end)
        for name, interval in intervals.items()
        for suffix, end in (("", "mean"), ("_low", "low"), ("_high", "high"))
    }


def _schema(held_out: Sequence[str]) -> pa.Schema:
    measured = [f"{name}{suffix}" for name in _INTERVALS for suffix in ("", "_low", "_high")]
    kinds = {
        **dict.fromkeys(("id", "label"), pa.string()),
        **dict.fromkeys(("omega_win", "omega_lose", "beta", "learning_rate", "proportion"), pa.float64()),
        **dict.fromkeys(("objective", "status", "sentence", "mlflow_run_id"), pa.string()),
        **dict.fromkeys(("on_front", "best"), pa.bool_()),
        "step": pa.int64(),
        **dict.fromkeys(("seconds", *measured, *(f"held_out_{name}" for name in held_out)), pa.float64()),
    }
    return pa.schema(list(kinds.items()))

"""The results of a sweep: a row per trial, the Pareto front, the choice, a Parquet file and the best configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.config import Config
from cpo_ray.config.sweep import Sweep
from cpo_ray.config.sweep.searched import Point
from cpo_ray.core.files import written
from cpo_ray.evaluation.measure import Measured, Scores, scores
from cpo_ray.evaluation.scorers.base import Scorer
from cpo_ray.evaluation.tables import aligned, cells, heads
from cpo_ray.sweep.measure import costs
from cpo_ray.sweep.records import Rung, Trial
from cpo_ray.sweep.space import label, parameters, point_config

#: Rule of `sweep.choice` → what it takes, for people.
RULES = {
    "bounded": "the best {first} among the trials whose {second} is behind the best by at most {slack:.0%}",
    "first": "the best {first}",
    "second": "the best {second}",
    "knee": "the point of the front nearest to the ideal, {first} and {second} scaled to 0 … 1",
}


@dataclass(frozen=True)
class TrialRow:
    """A trial at the last rung it reached. `parameters` are what it was trained with."""

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


def make_rows(
    config: Config, trials: Sequence[tuple[Trial, Sequence[Rung]]], base: Measured | None, aims: Sequence[Scorer]
) -> list[TrialRow]:
    """Return rows in the order of the trials' parameters, with the front and the best of the finished trials marked."""
    assert config.sweep is not None
    rows = []
    for trial, rungs in trials:
        last = rungs[-1] if rungs else Rung(0, {}, None)
        measured = None if last.measured is None else scores(last.measured, base)
        trained = parameters(point_config(config, trial.point), config.sweep.space)
        rows.append(TrialRow(trial, trained, last.step, measured, last.held_out))
    names = dict.fromkeys(name for row in rows for name in row.parameters)
    rows.sort(key=lambda row: tuple((name in row.parameters, row.parameters.get(name, 0)) for name in names))
    compared = [i for i, row in enumerate(rows) if row.trial.status == "finished" and row.scores is not None and aims]
    values = [costs(found, aims) for i in compared if (found := rows[i].scores) is not None]
    front, best = pareto_front(values), choose(values, config.sweep)
    for place, i in enumerate(compared):
        rows[i] = replace(rows[i], on_front=place in front, best=place == best)
    return rows


def pareto_front(values: Sequence[tuple[float, ...]]) -> set[int]:
    """Return the points that no other point beats: none is better in one value and at least as good in all. Less is better."""

    def dominated(point: tuple[float, ...]) -> bool:
        return any(other != point and all(theirs <= own for theirs, own in zip(other, point, strict=True)) for other in values)

    return {i for i, point in enumerate(values) if not dominated(point)}


def choose(values: Sequence[tuple[float, ...]], sweep: Sweep) -> int | None:
    """Return the best by `sweep.choice`, given costs for one or two goals; None without any. The other goal decides ties."""
    if not values:
        return None
    candidates = sorted(pareto_front(values))
    if sweep.choice == "first" or len(values[0]) == 1:
        return min(candidates, key=lambda i: values[i])
    if sweep.choice == "second":
        return min(candidates, key=lambda i: values[i][::-1])
    if sweep.choice == "bounded":
        least = min(second for _, second in values)
        bound = least + sweep.slack * abs(least)
        return min((i for i in candidates if values[i][1] <= bound), key=lambda i: values[i])
    lows = [min(values[i][side] for i in candidates) for side in (0, 1)]
    spans = [max(values[i][side] for i in candidates) - lows[side] or 1.0 for side in (0, 1)]
    return min(candidates, key=lambda i: sum(((values[i][side] - lows[side]) / spans[side]) ** 2 for side in (0, 1)))


def rule(sweep: Sweep, aims: Sequence[Scorer]) -> str:
    """Return the choice rule in words."""
    titles = [aim.title for aim in aims] or ["score"]
    choice = sweep.choice if len(titles) > 1 else "first"
    return RULES[choice].format(first=titles[0], second=titles[-1], slack=sweep.slack)


def best_config(config: Config, best: TrialRow, expert: Path) -> Config:
    """Return the best point as a run of its own for `jobs/train_cpo.py`: the same expert and targets, but the test's prompts."""
    chosen = point_config(config, best.trial.point)
    return chosen.model_copy(
        update={
            "run": chosen.run.model_copy(update={"name": f"{config.run.name}-best"}),
            "expert": chosen.expert.model_copy(update={"adapter": expert.absolute()}),
            "sweep": None,
        }
    )


def write_parquet(rows: Sequence[TrialRow], base: Scores | None, file: Path) -> None:
    """Write a line per trial, and one with the id "base". Intervals are `<name>`, `<name>_low` and `<name>_high`."""
    lines = [_line(row) for row in rows]
    if base is not None:
        lines.append({"id": "base", "label": "base", "status": "finished", "step": 0, **base.flat("_")})
    with written(file) as stream:
        pq.write_table(pa.Table.from_pylist(lines, _schema(rows, base)), stream)


def trials_table(rows: Sequence[TrialRow], base: Scores | None, scorers: Sequence[Scorer]) -> str:
    """Return aligned plain text, a trial per line: ● the best, ○ on the Pareto front."""
    body = [["", "base", *cells(scorers, base), "", ""]] if base is not None else []
    body += [
        [
            "●" if row.best else "○" if row.on_front else "",
            row.label,
            *cells(scorers, row.scores),
            str(row.step),
            "" if row.trial.status == "finished" else row.trial.status,
        ]
        for row in rows
    ]
    return aligned(["", "trial", *heads(scorers, "base"), "steps", ""], body, left=2)


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
        **({} if row.scores is None else row.scores.flat("_")),
        **{f"held_out_{name}": value for name, value in row.held_out.items()},
    }


def _schema(rows: Sequence[TrialRow], base: Scores | None) -> pa.Schema:
    """Return the columns of all rows together. A parameter has the type of its values."""
    parameters = {name: value for row in rows for name, value in row.parameters.items()}
    measured = [name for found in (base, *(row.scores for row in rows)) if found for name in found.flat("_")]
    held_out = sorted({f"held_out_{name}" for row in rows for name in row.held_out})
    kinds = {
        **dict.fromkeys(("id", "label"), pa.string()),
        **{name: pa.scalar(value).type for name, value in parameters.items()},
        **dict.fromkeys(("status", "sentence", "mlflow_run_id"), pa.string()),
        **dict.fromkeys(("on_front", "best"), pa.bool_()),
        "step": pa.int64(),
        **dict.fromkeys(("seconds", *measured, *held_out), pa.float64()),
    }
    return pa.schema(list(kinds.items()))

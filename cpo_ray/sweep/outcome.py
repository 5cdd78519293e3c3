"""The end of a sweep: the table, the files, the report, and what MLflow is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cpo_ray.config import Config, dump
from cpo_ray.config.sweep import Sweep
from cpo_ray.core.files import write_text
from cpo_ray.evaluation.domain import Picture, open_domain
from cpo_ray.evaluation.measure import Scores, scores
from cpo_ray.evaluation.rounds import validation_round
from cpo_ray.evaluation.scorers.base import Scorer, open_scorers
from cpo_ray.evaluation.tables import card_section
from cpo_ray.run import Run
from cpo_ray.sweep.measure import goals, read_pictures, shown_indices
from cpo_ray.sweep.records import read_rungs, read_trials, rung_file
from cpo_ray.sweep.report import SweepReport, write_sweep_report
from cpo_ray.sweep.results import TrialRow, best_config, make_rows, rule, trials_table, write_parquet
from cpo_ray.targets.producer import ProductionReport
from cpo_ray.tracking import ui_command
from cpo_ray.training.artifacts.card import add_evaluation

#: Folder of what was measured of the base, in the form of a trial's.
BASE = "base"
#: The alias that always points to the adapter of a sweep's best trial.
ALIAS = "best"
#: More columns of pictures than this cannot be compared at a glance.
MOST_COLUMNS = 9


def conclude(run: Run, sweep: Sweep, targets: ProductionReport) -> None:
    """Read what the trials left, choose, write results.parquet, report.html and best.toml, and tell MLflow and the user."""
    measured = rungs[0].measured if (rungs := read_rungs(run.folder / BASE)) else None
    base = None if measured is None else scores(measured, None)
    scorers = _measured_by(run.config, base)
    aims = goals(sweep, scorers)
    trials = [(trial, read_rungs(trial.folder(run.folder))) for trial in read_trials(run.folder)]
    rows = make_rows(run.config, trials, measured, aims)
    for trial, _ in trials:
        if trial.status in ("finished", "stopped"):  # one that diverged names its last good checkpoint
            trial.remove_checkpoints(run.folder)
    files = [run.folder / name for name in ("results.parquet", "report.html", "best.toml")]
    write_parquet(rows, base, files[0])
    write_sweep_report(_report(run, sweep, rows, base, targets), files[1])
    best = next((row for row in rows if row.best), None)
    if best is None:
        files.pop()
    else:
        write_text(files[2], dump(best_config(run.config, best, run.adapter)))
    for file in files:
        run.tracker.log_report(file)
    if base is not None:
        _complete_cards(run, rows, base, scorers)
    _tell_mlflow(run, rows, base, best)
    print(f"\n{trials_table(rows, base, scorers)}\n")
    left = sum(row.trial.status in ("running", "failed") for row in rows)
    if left:
        print(f"{left} trials did not come to their end; --resume goes on with them")
    print(
        f"expert        {targets.expert_forwards} forwards in this call; {targets.already_there} target shards were there before"
    )
    print(f"results       {files[0]}\nreport        {files[1]}")
    if best is not None:
        print(f"best          {best.label} ({rule(sweep, aims)})\n              jobs/train_cpo.py --config {files[2]}")
    print(f"MLflow store  {run.tracker.uri}\nopen it with  {ui_command(run.tracker.uri)}")


def _complete_cards(run: Run, rows: Sequence[TrialRow], base: Scores, scorers: Sequence[Scorer]) -> None:
    """Say in the card of each adapter, here and in MLflow, what was measured with it."""
    for row in rows:
        if row.trial.status == "finished" and row.scores is not None:
            adapter = row.trial.folder(run.folder) / "adapter"
            assert run.config.sweep is not None
            models = {"base": base, row.label: row.scores}
            add_evaluation(adapter, card_section(scorers, models, "validation", run.config.sweep.pictures))
            replace(run.tracker, run_id=row.trial.mlflow_run_id).log_card(adapter, run.config.model.revision)


def _tell_mlflow(run: Run, rows: Sequence[TrialRow], base: Scores | None, best: TrialRow | None) -> None:
    """Each trial's own MLflow run gets its scores. The base and the choice are on the run of the whole."""
    for row in rows:
        tracker = replace(run.tracker, run_id=row.trial.mlflow_run_id)
        tracker.tag("best", str(row.best).lower())
        if row.scores is not None:
            with tracker.start() as logger:
                logger.log(row.step, row.scores.flat("."))
    if best is not None:
        replace(run.tracker, run_id=best.trial.mlflow_run_id).register(f"{run.config.run.name}-adapter", ALIAS)
    told = {BASE: base, "best": best.scores if best else None}
    with run.tracker.start() as logger:
        for name, found in told.items():
            if found is not None:
                logger.log(0, {f"{name}.{key}": value for key, value in found.flat(".").items()})
    run.tracker.finish()


def _measured_by(config: Config, base: Scores | None) -> tuple[Scorer, ...]:
    """The scorers that have a number, since those whose weights are not to be had are left out."""
    return tuple(scorer for scorer in open_scorers(config) if base is None or scorer.name in base.intervals)


def _report(run: Run, sweep: Sweep, rows: Sequence[TrialRow], base: Scores | None, targets: ProductionReport) -> SweepReport:
    prompts = validation_round(run.config, run.dataset, open_domain(run.config.domain, run.tree), sweep.pictures).prompts
    scorers = _measured_by(run.config, base)
    facts = run.provenance | {
        "expert forwards": f"{targets.expert_forwards} in the last call; {targets.already_there} target shards were there before",
    }
    return SweepReport(
        title=f"Sweep {run.config.run.name}",
        rows=rows,
        base=base,
        axes=sweep.space,
        rule=rule(sweep, goals(sweep, scorers)),
        scorers=scorers,
        goals=goals(sweep, scorers),
        prompts=[prompts[i] for i in shown_indices(len(prompts))],
        pictures=_pictures(run.folder, rows),
        facts=facts,
        settings=dump(run.config),
    )


def _pictures(folder: Path, rows: Sequence[TrialRow]) -> dict[str, list[Picture]]:
    """The base and the trials by their parameters, ω first; where there are too many, the front's and then others in order."""
    drawn = [row for row in rows if rung_file(row.trial.folder(folder), row.step).with_suffix("").is_dir()]
    kept = sorted(sorted(drawn, key=lambda row: not row.on_front)[: MOST_COLUMNS - 1], key=drawn.index)
    columns = {row.label: rung_file(row.trial.folder(folder), row.step).with_suffix("") for row in kept}
    base = rung_file(folder / BASE, 0).with_suffix("")
    return {label: read_pictures(made) for label, made in ({"base": base} | columns).items() if made.is_dir()}

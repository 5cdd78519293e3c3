"""Rows, the Pareto front, the choice, and the files that a sweep leaves; from records on disk, as a resumed sweep reads them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cpo_ray.config import Config, ConfigError, dump, load
from cpo_ray.core.statistics import Interval, frechet_distance, frechet_interval
from cpo_ray.evaluation.measure import Measured, scores
from cpo_ray.evaluation.scorers.base import open_scorers
from cpo_ray.sweep.measure import costs, goals
from cpo_ray.sweep.records import Rung, Status, Trial, read_rungs, read_trials, save_rung
from cpo_ray.sweep.results import TrialRow, best_config, choose, make_rows, pareto_front, rule, trials_table, write_parquet

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy_sweep.toml"


def measured(negatives: tuple[float, ...], content: tuple[float, ...], distance: float, width: float = 1) -> Measured:
    return Measured(
        {"negatives": negatives, "content": content}, {"distance": Interval(distance, distance - width, distance + width)}
    )


BASE = measured((4, 3, 5, 4), (1, 1, 0, 1), 50, 2)


def config(*overrides: str) -> Config:
    return load(TOY, overrides)


SCORERS = open_scorers(config())


def record(folder: Path, omega: float, negatives: tuple[float, ...], distance: float, status: Status = "finished") -> Trial:
    trial = Trial({"omega": omega}, status, mlflow_run_id=f"run-{omega}", seconds=10.0)
    trial.save(folder)
    for step in (60, 120):
        save_rung(trial.folder(folder), Rung(step, {"win": -0.25}, measured(negatives, (1, 0, 1, 1), distance)))
    return trial


def rows_of(folder: Path, settings: Config) -> list[TrialRow]:
    assert settings.sweep is not None
    aims = goals(settings.sweep, SCORERS)
    return make_rows(settings, [(t, read_rungs(t.folder(folder))) for t in read_trials(folder)], BASE, aims)


def test_records_survive_the_disk(tmp_path: Path) -> None:
    trial = record(tmp_path, 2.0, (1, 2, 3, 4), 40.0)
    assert list(read_trials(tmp_path)) == [trial]
    first, second = read_rungs(trial.folder(tmp_path))
    assert (first.step, second.step) == (60, 120)
    assert second.measured == measured((1, 2, 3, 4), (1, 0, 1, 1), 40)
    assert second.metrics() == {"held_out/win": -0.25, "negatives": 2.5, "content": 0.75, "distance": 40.0}
    save_rung(tmp_path / "unmeasured", Rung(5, {}, None))
    assert read_rungs(tmp_path / "unmeasured") == [Rung(5, {}, None)]


def test_the_front_is_what_nothing_beats() -> None:
    #          best in one, best in other, beaten by 0, equal to 1, beaten in one and equal in the other
    values = [(1.0, 9.0), (5.0, 2.0), (1.5, 9.5), (5.0, 2.0), (5.0, 3.0), (3.0, 4.0)]
    assert pareto_front(values) == {0, 1, 3, 5}
    assert pareto_front([]) == set()


@pytest.mark.parametrize(
    ("choice", "slack", "expected"),
    [
        ("first", 0.1, 0),
        ("second", 0.1, 2),
        ("bounded", 0.0, 2),  # only the smallest distance itself is left
        ("bounded", 0.1, 1),  # 44 is the bound: 43 passes, 60 does not
        ("bounded", 0.5, 0),  # 60 is the bound
        ("knee", 0.1, 1),  # scaled: (0, 1), (0.2, 0.15), (1, 0): sums of squares 1, 0.06, 1
    ],
)
def test_the_rules_of_choice(choice: str, slack: float, expected: int) -> None:
    sweep = config(f"sweep.choice={choice}", f"sweep.slack={slack}").sweep
    assert sweep is not None
    # The last is dominated: no rule may take it.
    assert choose([(1.0, 60.0), (1.2, 43.0), (2.0, 40.0), (2.1, 43.0)], sweep) == expected
    assert choose([], sweep) is None


def test_goals_are_scorers_and_know_which_way_is_better() -> None:
    sweep = config('sweep.goals=["content", "negatives"]').sweep
    assert sweep is not None
    aims = goals(sweep, SCORERS)
    assert costs(scores(BASE, None), aims) == (-0.75, 4.0)
    # More content is better: 0.9 wins although it has more negatives.
    assert choose([(-0.75, 2.0), (-0.9, 3.0)], sweep.model_copy(update={"choice": "first"})) == 1
    unknown = config('sweep.goals=["clip"]').sweep
    assert unknown is not None
    with pytest.raises(ConfigError, match="'clip', by which nothing is scored here; choose among negatives, content, distance"):
        goals(unknown, SCORERS)


def test_the_rule_is_said_in_words() -> None:
    sweep = config("sweep.slack=0.25").sweep
    assert sweep is not None
    aims = goals(sweep, SCORERS)
    assert rule(sweep, aims) == "the best #A_neg among the trials whose distance is behind the best by at most 25%"
    assert rule(sweep, aims[:1]) == "the best #A_neg"


def test_rows_are_ordered_compared_with_the_base_and_only_finished_ones_are_chosen(tmp_path: Path) -> None:
    record(tmp_path, 3.0, (0, 0, 0, 0), 30.0, status="stopped")
    record(tmp_path, 2.0, (3, 2, 4, 3), 40.0)
    record(tmp_path, 1.0, (4, 3, 5, 4), 45.0)
    Trial({"omega": 1.5}, "failed", "it crashed").save(tmp_path)
    rows = rows_of(tmp_path, config())
    assert [row.trial.point["omega"] for row in rows] == [1.0, 1.5, 2.0, 3.0]
    assert [row.best for row in rows] == [False, False, True, False]
    assert [row.on_front for row in rows] == [False, False, True, False]
    assert rows[1].scores is None and rows[1].step == 0
    found = rows[2].scores
    assert found is not None
    # Every picture has exactly one negative less than the base's: the paired interval is a point.
    assert found.intervals["negatives"].mean == 3.0 and found.changes["negatives"] == Interval(-1.0, -1.0, -1.0)
    assert rows[2].parameters["omega_win"] == rows[2].parameters["omega_lose"] == 2.0


def test_the_table_marks_the_best_and_says_what_did_not_finish(tmp_path: Path) -> None:
    record(tmp_path, 2.0, (3, 2, 4, 3), 40.0)
    Trial({"omega": 1.5}, "failed", "it crashed").save(tmp_path)
    lines = trials_table(rows_of(tmp_path, config()), scores(BASE, None), SCORERS).splitlines()
    assert lines[2].split()[:2] == ["base", "4.00"]
    assert lines[3].split() == ["ω", "1.5", "0", "failed"]
    assert lines[4].startswith("●  ω 2") and "−1.00 [−1.00, −1.00]" in lines[4]


def test_the_parquet_file_has_a_typed_line_per_trial(tmp_path: Path) -> None:
    record(tmp_path, 2.0, (3, 2, 4, 3), 40.0)
    Trial({"omega": 1.5}, "diverged", "NaN").save(tmp_path)
    write_parquet(rows_of(tmp_path, config()), scores(BASE, None), tmp_path / "results.parquet")
    found = {line["label"]: line for line in pq.read_table(tmp_path / "results.parquet").to_pylist()}
    assert set(found) == {"base", "ω 1.5", "ω 2"}
    assert (found["ω 2"]["negatives"], found["ω 2"]["distance_high"], found["ω 2"]["held_out_win"]) == (3.0, 41.0, -0.25)
    assert found["ω 2"]["best"] and found["ω 2"]["step"] == 120
    assert found["ω 1.5"]["negatives"] is None and found["ω 1.5"]["status"] == "diverged"
    assert found["base"]["negatives_change"] is None and found["base"]["negatives"] == 4.0


def test_the_best_is_a_configuration_for_the_main_job(tmp_path: Path) -> None:
    record(tmp_path, 2.5, (3, 2, 4, 3), 40.0)
    settings = config()
    (row,) = rows_of(tmp_path, settings)
    (tmp_path / "best.toml").write_text(dump(best_config(settings, row, tmp_path / "expert")))
    best = load(tmp_path / "best.toml")
    told = best.preference.objective.model_dump()
    assert (told["omega_win"], told["omega_lose"]) == (2.5, 2.5)
    assert best.run.name == "toy-sweep-best" and best.sweep is None
    assert best.expert.adapter == tmp_path / "expert"
    assert best.run.seed == settings.run.seed and best.targets == settings.targets  # so its targets are there already


def test_the_jackknife_interval_of_a_distance() -> None:
    # One dimension, good pictures of mean 0 and variance 0: the distance is mean² + variance of the sample.
    good = [[0.0], [0.0]]
    sample = [[2.0], [2.0], [2.0], [2.0]]
    assert frechet_interval(sample, good) == Interval(4.0, 4.0, 4.0)
    mixed = [[1.0], [1.0], [3.0], [3.0]]
    found = frechet_interval(mixed, good)
    assert found.mean == pytest.approx(frechet_distance(mixed, good)) == pytest.approx(4 + 4 / 3)
    # Without a 1 the rest is (1, 3, 3): (7/3)² + 4/3 = 61/9; without a 3 (1, 1, 3): (5/3)² + 4/3 = 37/9.
    error = 1.96 * (3 / 4 * 4 * (12 / 9) ** 2) ** 0.5
    assert found.high - found.mean == pytest.approx(error)
    assert found.low == pytest.approx(max(4 + 4 / 3 - error, 0))

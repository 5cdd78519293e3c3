"""The report of a sweep: what stands in it, and where the marks of its charts are."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cpo_ray.config.sweep.axis import Axis
from cpo_ray.config.sweep.searched import Point
from cpo_ray.core.statistics import Interval
from cpo_ray.domains.toy.scorers import DistanceToGood, ShowsContent
from cpo_ray.evaluation.measure import Scores
from cpo_ray.evaluation.scorers.negatives import Negatives
from cpo_ray.sweep.charts import Dot, Scale, curve_chart, front_chart, parallel_chart
from cpo_ray.sweep.records import Trial
from cpo_ray.sweep.report import SweepReport, write_sweep_report
from cpo_ray.sweep.results import TrialRow

SCORERS = (Negatives(), ShowsContent(), DistanceToGood())


def point(value: float, width: float = 0.0) -> Interval:
    return Interval(value, value - width, value + width)


def row(omega: float, beta: float, negatives: float, distance: float, *, best: bool = False) -> TrialRow:
    scores = Scores(
        {"negatives": point(negatives, 0.2), "content": point(0.75, 0.05), "distance": point(distance, 3)},
        {"negatives": point(negatives - 4, 0.1)},
    )
    parameters: Point = {"omega_win": omega, "omega_lose": omega, "beta": beta}
    return TrialRow(Trial({"omega": omega, "beta": beta}, "finished"), parameters, 120, scores, {}, best, best)


def test_a_scale_begins_and_ends_at_round_numbers() -> None:
    even = Scale(1.0, 3.0, 0, 100)
    assert (even(1.0), even(2.0), even(3.0)) == (0, 50, 100)
    magnitude = Scale(100.0, 10_000.0, 0, 100, log=True)
    assert magnitude.ticks == [100.0, 1000.0, 10_000.0]
    assert magnitude(1000.0) == pytest.approx(50)
    assert Scale(1000.0, 1000.0, 0, 100, log=True)(1000.0) == pytest.approx(0)


def test_the_curve_goes_through_the_means_of_what_shares_a_value() -> None:
    dots = [Dot("a", point(1), point(2)), Dot("b", point(1), point(4)), Dot("c", point(3), point(1), best=True)]
    chart = str(curve_chart(dots, None, ("ω", "#A_neg"), joined=True, log=False))
    (path,) = re.findall(r'class="curve"[^>]*points="([^"]*)"', chart)
    heights = dict(re.findall(r'class="dot (?:other|best)".*?cx="[^"]*" cy="([^"]*)".*?<title>(\w):', chart))
    (first, last) = [float(pair.split(",")[1]) for pair in path.split()]
    height = {name: float(place) for place, name in heights.items()}
    assert first == pytest.approx((height["a"] + height["b"]) / 2, abs=0.1) and last == height["c"]
    assert 'class="curve"' not in str(curve_chart(dots, None, ("ω", "#A_neg"), joined=False, log=False))


def test_the_front_is_joined_by_steps_that_no_trial_is_below() -> None:
    dots = [
        Dot("a", point(1), point(5), on_front=True),
        Dot("b", point(2), point(3), on_front=True),
        Dot("c", point(3), point(4)),
    ]
    chart = str(front_chart(dots, Dot("base", point(4), point(6)), ("distance", "#A_neg")))
    (path,) = re.findall(r'class="stairs" points="([^"]*)"', chart)
    corners = [tuple(map(float, pair.split(","))) for pair in path.split()]
    assert len(corners) == 3
    assert corners[0][1] == corners[1][1] and corners[1][0] == corners[2][0]  # right, then down


def test_the_steps_of_a_front_turn_with_what_is_better() -> None:
    """More of the measure across is better here: "a" is best in the one, "b" in the other."""
    dots = [Dot("b", point(1), point(1), on_front=True), Dot("a", point(3), point(2), on_front=True)]
    chart = str(front_chart(dots, None, ("content", "#A_neg"), leftward=False))
    (path,) = re.findall(r'class="stairs" points="([^"]*)"', chart)
    (b, corner, a) = [tuple(map(float, pair.split(","))) for pair in path.split()]
    assert corner == (b[0], a[1])  # as little content as "b" with as many negatives as "a": both are better


def test_the_best_line_is_drawn_over_the_others() -> None:
    lines = {"ω": [1.0, 2.0, 3.0], "#A_neg": [3.0, 2.0, 1.0]}
    chart = str(parallel_chart(lines, ["best", "other", "front"], ["a", "b", "c"], set()))
    assert re.findall(r'class="trial (\w+)"', chart) == ["other", "front", "best"]


@pytest.fixture
def report() -> SweepReport:
    pictures = [np.full((8, 8, 3), shade, np.uint8) for shade in (10, 200)]
    return SweepReport(
        title="Sweep <toy>",
        rows=[row(1.0, 100.0, 3.1, 45.0), row(2.0, 100.0, 2.2, 40.0, best=True), row(2.0, 10_000.0, 2.5, 48.0)],
        base=Scores({"negatives": point(4.0, 0.2), "content": point(0.7, 0.05), "distance": point(50.0, 3)}, {}),
        axes={"omega": Axis(values=(1.0, 2.0)), "beta": Axis(values=(100.0, 10_000.0))},
        rule="fewest negatives",
        scorers=SCORERS,
        goals=(SCORERS[0], SCORERS[2]),
        prompts=["red circle over sea", "blue square on grey wall"],
        pictures={"base": pictures, "ω 2, β 100": pictures},
        facts={"commit": "abc"},
        settings="[run]\n",
    )


def test_the_report_has_every_trial_chart_and_picture_and_needs_no_network(report: SweepReport, tmp_path: Path) -> None:
    page = write_sweep_report(report, tmp_path / "report.html").read_text()
    assert "Sweep &lt;toy&gt;" in page
    assert page.count('<tr><th scope="row">ω') + page.count('class="featured"><th scope="row">ω') == 3
    assert "change −1.80 [−1.90, −1.70]" in page
    assert page.count('class="chart"') == 2 * 3 + 1 + 1  # three measures over ω and β, the front, the parallel lines
    assert page.count("data:image/png;base64,") == 2 * 2
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert not list(tmp_path.glob("*.partial"))


def test_a_sweep_that_nothing_could_measure_still_shows_its_pictures(report: SweepReport, tmp_path: Path) -> None:
    unmeasured = [replace(found, scores=None, best=False, on_front=False) for found in report.rows]
    page = write_sweep_report(replace(report, rows=unmeasured, base=None), tmp_path / "report.html").read_text()
    assert "Nothing was measured" in page and 'class="chart"' not in page
    assert page.count("data:image/png;base64,") == 4

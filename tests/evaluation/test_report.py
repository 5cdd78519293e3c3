"""The report of a run: what stands in it, and that it needs nothing beside itself."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from support.elements import Elements
from support.outside.scorer import Brightness

from cpo_ray.config import DomainSettings
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.domains.toy.render import CONTENTS, Scene
from cpo_ray.domains.toy.render import render as draw
from cpo_ray.domains.toy.scorers import good_pictures
from cpo_ray.evaluation.measure import compare, measure
from cpo_ray.evaluation.report import RunReport, read_curves, render, write_report
from cpo_ray.evaluation.scorers.negatives import Negatives
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.reports.charts import smoothed, ticks
from cpo_ray.reports.page import data_uri

TREE = Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """Six renders with blurred edges as the base, good ones as the model's."""
    tree = load_hierarchy(TREE)
    prompts = [c.prompt for c in CONTENTS[:6]]
    blurred = [draw(Scene(c, frozenset({"edge.clarity"}), False, seed)) for seed, c in enumerate(CONTENTS[:6])]
    pictures = {"base": blurred, "CPO <stabilised>": good_pictures(prompts, seed=0, count=6)}
    domain, scorers = ToyDomain(DomainSettings(use="toy"), tree), (Negatives(), Brightness())
    measured = {name: measure(made, prompts, domain, scorers) for name, made in pictures.items()}
    file = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    steps = ({"step": s, "win": -0.01 * s, "lose": 0.02 * s, "distance_to_reference": s} for s in range(9))
    file.write_text("".join(json.dumps(step) + "\n" for step in steps))
    return RunReport(
        title="Six & more",
        pictures=pictures,
        prompts=prompts,
        tree=tree,
        result=compare(measured, scorers),
        curves={"cpo_s": file},
        settings='[run]\nname = "x"',
        provenance={"adapter": "0f3c"},
        shown=3,
    )


def test_a_report_is_one_well_formed_file_that_loads_nothing(report: RunReport, tmp_path: Path) -> None:
    text = write_report(report, tmp_path / "deep" / "report.html").read_text()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]
    elements = Elements(text)
    assert (
        not elements.all("script")
        and not elements.all("link")
        and not re.search(r"(src|href)=.(https?:|//|file:)|url\(|@import", text)
    )
    assert [e for e in elements.all("html") if e["lang"] == "en"]
    assert "Six &amp; more" in text and "CPO &lt;stabilised&gt;" in text and "<stabilised>" not in text


def test_every_picture_says_what_it_shows_and_what_was_found(report: RunReport) -> None:
    text = render(report)
    images = Elements(text).all("img")
    assert len(images) == 3 * 2
    # The first, a middle and the last of six prompts, the base before the model.
    assert images[0]["alt"] == f"base: {report.prompts[0]}; blurred edges"
    assert images[1]["alt"] == f"CPO <stabilised>: {report.prompts[0]}"
    assert images[5]["alt"] == f"CPO <stabilised>: {report.prompts[5]}"
    assert "<li>✕ blurred edges</li>" in text and "<li>✓ clear edges</li>" in text
    assert "1.00 →" in text  # the base has one negative in each picture
    assert "mean brightness of a picture" in text  # a scorer from outside is a column like any other


def test_pictures_are_embedded_unchanged_and_large_ones_smaller() -> None:
    picture = draw(Scene(CONTENTS[0], frozenset(), True, 3))
    decoded = Image.open(io.BytesIO(base64.b64decode(data_uri(picture).removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(decoded), picture)
    large = np.zeros((1024, 512, 3), np.uint8)
    assert Image.open(io.BytesIO(base64.b64decode(data_uri(large).split(",")[1]))).size == (192, 384)


def test_charts_are_well_formed_and_described(report: RunReport) -> None:
    drawn = re.findall(r"<svg.*?</svg>", render(report), re.DOTALL)
    figures = [ElementTree.fromstring(svg) for svg in drawn]
    described = [f.attrib["aria-label"] for f in figures if f.get("role") == "img"]
    # A mark in each row of the table, the bars, the two charts of one objective.
    assert len(figures) == 2 + 1 + 2 and len(described) == 3
    assert "cpo_s: win part ends at -0.07" in described[1]
    bars = [rect for rect in figures[2].iter("rect")]
    assert len(bars) == len(report.tree.roots) * 2
    assert float(bars[0].attrib["width"]) > 100 > float(bars[1].attrib["width"])  # edges: base, model


def test_a_domain_that_cannot_measure_gets_pictures_and_no_numbers(report: RunReport) -> None:
    text = render(replace(report, result=None, curves={}))
    assert len(Elements(text).all("img")) == 6
    assert "Nothing was measured" in text and "no bad attribute" not in text and "<table" not in text


def test_a_report_refuses_models_with_other_numbers_of_pictures(report: RunReport) -> None:
    with pytest.raises(ValueError, match="6 prompts"):
        render(replace(report, pictures={"base": report.pictures["base"][:2]}))


def test_a_repeated_step_counts_as_it_was_last_and_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [(1, 0.5), (2, 0.6), (2, 0.7), (3, float("nan"))]
    lines = [{"step": s, "win": w, "lose": 0.0, "distance_to_reference": 0.0, "loss": 1.0} for s, w in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 4, "loss": 1.0}]))
    assert read_curves(file)["step"] == [1, 2]
    assert read_curves(file)["win"] == [0.5, 0.7]
    file.write_text('{"step": 1')
    with pytest.raises(ValueError, match="line 1 is not a JSON object"):
        read_curves(file)
    file.write_text("")
    assert read_curves(file) == {}


def test_smoothing_keeps_constants_and_lines() -> None:
    assert smoothed([2.0] * 7) == pytest.approx([2.0] * 7)
    assert smoothed([1.0]) == pytest.approx([1.0])
    assert smoothed(list(range(9)))[1:-1] == pytest.approx(list(range(1, 8)))


def test_ticks_are_round_and_enclose() -> None:
    assert ticks(-0.002, 0.0093, 5) == pytest.approx([-0.005, 0, 0.005, 0.01])
    assert ticks(0, 200, 5) == [0, 50, 100, 150, 200]
    assert ticks(0, 0, 5)[-1] > ticks(0, 0, 5)[0]

"""One way to measure for everybody: scorers of pictures and of sets, intervals, paired changes, the one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cpo_ray.config import Config, ConfigError, DomainSettings, load
from cpo_ray.core.prompts import Labels
from cpo_ray.core.statistics import Interval, frechet_interval
from cpo_ray.evaluation.domain import Domain, Picture, open_domain
from cpo_ray.evaluation.measure import Comparison, Measured, compare, measure, scores
from cpo_ray.evaluation.models import compare_models
from cpo_ray.evaluation.report import RunReport, render
from cpo_ray.evaluation.rounds import Round
from cpo_ray.evaluation.scorers.base import Drawn, PictureScorer, SetScorer, open_scorers
from cpo_ray.evaluation.scorers.negatives import Negatives
from cpo_ray.evaluation.tables import card_section, table
from cpo_ray.hierarchy import load_hierarchy

ROOT = Path(__file__).parents[2]
TOY, TREE = ROOT / "jobs" / "configs" / "toy.toml", ROOT / "hierarchy" / "painting_toy.yaml"


class OnePixel(Domain):
    """A picture is one pixel: red says how many negatives it has, green whether its content is right."""

    ids = ("edge.clarity", "brush.ground", "light.modelling")

    def annotate(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[Labels]:
        counts = [int(picture[0, 0, 0]) for picture in pictures]
        return [Labels(prompt, self.ids[n:], self.ids[:n]) for n, prompt in zip(counts, prompts, strict=True)]


class Right(PictureScorer):
    name, title, better, meaning = "right", "right", "higher", "the share of pictures with some green"
    decimals, with_interval = 3, False

    def score(self, drawn: Drawn) -> NDArray[np.float64]:
        return np.array([float(picture[0, 0, 1] > 0) for picture in drawn.pictures])


class Away(SetScorer):
    name, title, better, meaning = "away", "away", "lower", "how far the pixels are from green"

    def distance(self, drawn: Drawn) -> Interval:
        pixels = np.array([picture[0, 0] for picture in drawn.pictures], dtype=float)
        return frechet_interval(pixels, [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])


ONE_PIXEL = OnePixel(DomainSettings(use="one pixel"), load_hierarchy(TREE))
SCORERS = (Negatives(), Right(), Away())


def pixels(*values: tuple[int, int]) -> list[Picture]:
    return [np.array([[[red, green, 0]]], dtype=np.uint8) for red, green in values]


def compared(**pictures: list[Picture]) -> Comparison:
    return compare({name: measure(made, ["p"] * len(made), ONE_PIXEL, SCORERS) for name, made in pictures.items()}, SCORERS)


def test_every_scorer_has_a_number_of_every_model() -> None:
    found = compared(base=pixels((3, 1), (2, 1), (3, 1), (2, 0)), after=pixels((1, 1), (0, 1), (1, 1), (0, 1)))
    base, after = found.models["base"], found.models["after"]
    assert base.intervals["negatives"].mean == 2.5 and base.changes == {}
    assert after.changes["negatives"] == Interval(-2, -2, -2)
    assert (base.intervals["right"].mean, after.intervals["right"].mean) == (0.75, 1.0)
    # Mean 0.5 away, variance 1/3 against none.
    assert after.intervals["away"].mean == pytest.approx(0.25 + 1 / 3)
    written = json.loads(json.dumps(found.as_json()))["models"]["after"]
    assert written["labels"][0]["negative_ids"] == ["edge.clarity"]
    assert written["negatives"]["mean"] == 0.5 and written["changes"]["negatives"]["high"] == -2


def test_scores_lie_flat_under_the_same_keys_for_everybody() -> None:
    found = compared(base=pixels((3, 1), (2, 1), (3, 1)), after=pixels((1, 1), (0, 1), (0, 1))).models["after"].flat(".")
    ends = ("", ".low", ".high")
    assert set(found) == {
        f"{name}{end}" for name in ("negatives", "right", "away", "negatives.change", "right.change") for end in ends
    }


def test_the_table_stands_in_columns_and_shows_what_each_scorer_says() -> None:
    models = {"base": pixels((3, 1), (2, 1), (3, 1), (2, 1)), "a long name": pixels((1, 1), (0, 0), (1, 1), (0, 0))}
    lines = table(compared(**models)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["model", "#A_neg", "[95", "%]", "change", "vs", "base", "[95", "%]", "right", "away", "[95", "%]"]
    assert lines[3].split()[3:9] == ["0.50", "[0.00,", "1.00]", "−2.00", "[−2.00,", "−2.00]"]
    assert lines[3].split()[9] == "0.500"


def test_a_card_tells_what_every_column_means() -> None:
    found = compared(base=pixels((3, 1), (2, 1), (3, 1), (2, 1)), after=pixels((1, 1), (0, 1), (1, 1), (0, 1)))
    text = card_section(SCORERS, {name: found.models[name] for name in ("base", "after")}, "test", 4)
    assert "4 pictures, of the same test prompts and noise" in text
    assert "right: the share of pictures with some green (higher is better)" in text
    assert "| after | 0.50 [0.00, 1.00] | −2.00 [−2.00, −2.00] | 1.000 |" in text


def test_what_does_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="no pictures of the base 'base'"):
        compared(after=pixels((1, 1), (1, 1), (1, 1)))
    with pytest.raises(ValueError, match="1 pictures for 2 prompts"):
        measure(pixels((1, 1)), ["p", "q"], ONE_PIXEL, SCORERS)

    class Short(Right):
        def score(self, drawn: Drawn) -> NDArray[np.float64]:
            return np.zeros(1)

    with pytest.raises(ValueError, match=r"'right' gave numbers of shape \(1,\) for 2 pictures"):
        measure(pixels((1, 1), (1, 1)), ["p", "q"], ONE_PIXEL, [Short()])

    class Broken(Right):
        def score(self, drawn: Drawn) -> NDArray[np.float64]:
            return np.array([1.0, np.inf])

    with pytest.raises(ValueError, match=r"'right' gave inf for picture 1 \('q'\); it must be finite"):
        measure(pixels((1, 1), (1, 1)), ["p", "q"], ONE_PIXEL, [Broken()])

    class Blind(Right):
        def score(self, drawn: Drawn) -> NDArray[np.float64]:
            return np.full(2, np.nan)

    with pytest.raises(ValueError, match="'right' gave no number for any of 2 pictures"):
        measure(pixels((1, 1), (1, 1)), ["p", "q"], ONE_PIXEL, [Blind()])


class Forgetful(Domain):
    """Cannot read a picture without red."""

    def annotate(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[Labels | None]:
        found = ONE_PIXEL.annotate(pictures, prompts)
        return [labels if picture[0, 0, 0] else None for picture, labels in zip(pictures, found, strict=True)]


def test_a_picture_that_cannot_be_read_is_told_and_counts_nowhere() -> None:
    domain, tree = Forgetful(DomainSettings(use="x"), ONE_PIXEL.tree), ONE_PIXEL.tree
    before, after = pixels((3, 1), (2, 1), (0, 1)), pixels((0, 1), (1, 1), (2, 1))
    measured = {"base": measure(before, ["p"] * 3, domain, SCORERS), "after": measure(after, ["p"] * 3, domain, SCORERS)}
    assert measured["base"].values["negatives"] == (3.0, 2.0, None) and measured["base"].means["negatives"] == 2.5
    assert Measured.from_json(json.loads(json.dumps(asdict(measured["base"])))) == replace(measured["base"], labels=None)
    found = compare(measured, SCORERS)
    assert found.models["after"].intervals["negatives"].mean == 1.5 and found.models["after"].unscored == {"negatives": 1}
    assert found.models["after"].changes["negatives"].mean == -1, "only the second picture was read of both models"
    assert found.models["after"].flat(".")["negatives.unscored"] == 1 and "right.unscored" not in found.models["after"].flat(".")
    assert "2.50 [2.00, 3.00], 1 unscored" in table(found)
    written = found.as_json()["models"]["after"]
    assert written["labels"][0] is None and written["unscored"] == {"negatives": 1}
    page = render(RunReport("one", {"base": before, "after": after}, ["p"] * 3, tree, result=found))
    assert page.count("its attributes could not be read") == 2


def test_what_was_measured_survives_json() -> None:
    measured = Measured({"negatives": (1.0, 2.0)}, {"distance": Interval(1, 0, 2)})
    written = json.loads(json.dumps({"values": measured.values, "sets": {"distance": vars(measured.sets["distance"])}}))
    assert Measured.from_json(written) == measured
    assert measured.means == {"negatives": 1.5, "distance": 1}
    assert scores(measured, None).intervals["negatives"].mean == 1.5


def config(*overrides: str) -> Config:
    return load(TOY, overrides)


def test_scorers_are_the_domains_or_those_named() -> None:
    assert [scorer.name for scorer in open_scorers(config())] == ["negatives", "content", "distance"]
    named = config('evaluation.scorers=["negatives", "support.outside.scorer:Brightness"]')
    assert [scorer.name for scorer in open_scorers(named)] == ["negatives", "brightness"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (['evaluation.scorers=["negativ"]'], "there is no scorer 'negativ'; choose one of negatives"),
        (['evaluation.scorers=["negatives", "negatives"]'], "two scorers of the name 'negatives'"),
        (['evaluation.scorers=["support.outside.domain:Photographs"]'], "has no class `settings` with a key 'name'"),
        (
            ["domain.use=none", "domain.pictures=0", "model.base=x", 'evaluation.scorers=["negatives"]'],
            "needs labels, and nothing here can read them",
        ),
    ],
)
def test_scorers_that_cannot_be_are_refused_in_a_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        open_scorers(config(*overrides))


class Nameless(PictureScorer):
    title, better, meaning = "nothing", "lower", "nothing"

    def score(self, drawn: Drawn) -> NDArray[np.float64]:
        return np.zeros(len(drawn.pictures))


class Upward(Nameless):
    name, better = "upward", "up"  # type: ignore[assignment]


class Named(Nameless):
    name = "bright_2"


@pytest.mark.parametrize(
    ("scorer", "sentence"), [(Nameless, "has no 'name'"), (Upward, "its better is 'up'; it must be 'lower' or 'higher'")]
)
def test_a_scorer_that_does_not_say_what_it_is_is_refused(scorer: type[Nameless], sentence: str) -> None:
    settings = config(f'evaluation.scorers=["{__name__}:{scorer.__name__}"]')
    with pytest.raises(ConfigError, match=sentence):
        open_scorers(settings)


@pytest.mark.parametrize(
    "name", ["step", "loss", "omega_win", "beta", "mlflow_run_id", "negatives_low", "held_out_loss", "Bright"]
)
def test_a_scorer_has_no_name_under_which_another_number_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(f'evaluation.scorers=["negatives", "{__name__}:Named"]')
    assert [scorer.name for scorer in open_scorers(settings)] == ["negatives", "bright_2"]
    monkeypatch.setattr(Named, "name", name)
    with pytest.raises(ConfigError, match=f"its name is '{name}'; a name is of small letters"):
        open_scorers(settings)


def test_a_run_without_a_domain_is_scored_by_what_needs_none(tmp_path: Path) -> None:
    plain = ("domain.use=none", "domain.pictures=0", "model.base=x")
    domain = open_domain(config(*plain).domain, ONE_PIXEL.tree)
    asked = Round((Labels("p", (), ()), Labels("q", (), ())), 1)
    pictures = {"base": pixels((0, 0), (0, 0)), "after": pixels((30, 30), (60, 60))}
    assert compare_models(config(*plain), domain, asked, pictures, tmp_path) is None
    named = config(*plain, 'evaluation.scorers=["support.outside.scorer:Brightness"]')
    found = compare_models(named, domain, asked, pictures, tmp_path)
    assert found is not None and found.models["after"].intervals["brightness"].mean == pytest.approx((20 + 40) / 255 / 2)
    assert found.labels == {}

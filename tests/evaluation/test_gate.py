"""The gate before stage 2: how obedience is measured, and the page that shows the pictures beside their attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cpo_ray.config import Config, DomainSettings, load
from cpo_ray.core.prompts import Labels
from cpo_ray.evaluation import gate
from cpo_ray.evaluation.domain import NoDomain, Picture
from cpo_ray.evaluation.gate import GatePictures, Obedience, draw_gate
from cpo_ray.evaluation.gate_page import SHOWN, gate_page, shown
from cpo_ray.evaluation.generate import GenerationJob
from cpo_ray.hierarchy import Hierarchy, load_hierarchy

ROOT = Path(__file__).parents[2]
#: One good and two bad attributes. In C one of the bad ones comes, in A the other one all the same, and a third unnamed.
REQUEST = Labels("red circle over sea", ("edge.clarity",), ("light.contrast", "brush.surface"))
FAULTLESS = Labels("blue square over field", ("edge.clarity", "light.contrast"), ())
FOUND = {
    "A": Labels("", ("edge.clarity",), ("brush.surface", "color.palette")),
    "B": Labels("", ("edge.clarity", "light.contrast"), ()),
    "C": Labels("", (), ("light.contrast",)),
}


@pytest.fixture(scope="module")
def config() -> Config:
    return load(ROOT / "jobs" / "configs" / "toy.toml")


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return load_hierarchy(ROOT / "hierarchy" / "painting_toy.yaml")


def drawn(*requests: Labels, labelled: bool = True) -> GatePictures:
    black: list[Picture] = [np.zeros((64, 64, 3), np.uint8)] * len(requests)
    found = {key: [labels] * len(requests) for key, labels in FOUND.items()} if labelled else None
    return GatePictures(requests, dict.fromkeys("ABC" if labelled else "AC", black), found)


def test_obedience_is_the_overlap_of_asked_and_found() -> None:
    found = Obedience.of(drawn(REQUEST))
    assert {key: interval.mean for key, interval in found.positive.items()} == {"A": 1.0, "B": 0.5, "C": 0.0}
    assert {key: interval.mean for key, interval in found.negative.items()} == {"A": 1 / 3, "B": 0.0, "C": 0.5}
    assert found.gap == pytest.approx(0.5 - 1 / 3)
    with pytest.raises(ValueError, match="nobody has looked at these pictures"):
        Obedience.of(drawn(REQUEST, labelled=False))


def test_a_picture_that_cannot_be_read_is_told_and_counts_nowhere(config: Config, tree: Hierarchy, tmp_path: Path) -> None:
    both = drawn(REQUEST, REQUEST)
    assert both.found is not None
    half = GatePictures(both.requests, both.pictures, {**both.found, "A": [None, FOUND["A"]]})
    found = Obedience.of(half)
    assert found.negative["A"].mean == 1 / 3 and found.unread == {"A": 1}
    assert "0.33  (1 pictures unread)" in found.table()
    found.save(tmp_path / "obedience.json")
    assert Obedience.read(tmp_path / "obedience.json") == found
    (_, _), (_, refused), (_, _), (_, read) = items(gate_page(config, half, tree))
    assert refused == ["clear edges", "banded brush", "washed contrast"] and "✕ banded brush" in read


def items(page: str) -> list[tuple[str, list[str]]]:
    """(whether C or A, what its lines say) of each picture on the page."""
    figures = re.findall(r"<figcaption><b>(.*?)</b>(.*?)</figcaption>", page, re.DOTALL)
    return [(head, re.findall(r"<li.*?>(.*?)</li>", lines)) for head, lines in figures]


def test_the_page_marks_what_is_as_the_expert_was_told(config: Config, tree: Hierarchy) -> None:
    page = gate_page(config, drawn(FAULTLESS, REQUEST), tree)
    (_, asked), (_, refused) = items(page)[:2]
    assert asked == ["✕ no clear edges", "✕ no banded brush", "✓ washed contrast"]
    assert refused == ["✓ clear edges", "✕ banded brush", "✓ no washed contrast", "muddy palette"]
    assert "1 of 3 met" in page and "2 of 3 met" in page
    assert page.index(REQUEST.prompt) < page.index(FAULTLESS.prompt), "where nothing is refused there is least to see"
    obeying = gate_page(config, drawn(REQUEST), tree)
    assert "the expert obeys" in obeying and "at least 0.15 is expected" in obeying
    strict = config.model_copy(update={"expert": config.expert.model_copy(update={"obedience_gate": 0.9})})
    assert "the expert does not obey" in gate_page(strict, drawn(REQUEST), tree)


def test_without_a_reader_of_labels_the_page_says_what_was_asked_for(config: Config, tree: Hierarchy) -> None:
    page = gate_page(config, drawn(REQUEST, labelled=False), tree)
    lines = ["clear edges", "banded brush", "washed contrast"]
    assert items(page) == [("asked for good and bad", lines), ("asked for good, bad refused", lines)]
    assert "reads no attributes from pictures" in page and "met</span>" not in page and "obeys" not in page


def test_a_long_list_of_requests_is_cut() -> None:
    assert shown([FAULTLESS, *[REQUEST] * 30]) == list(range(1, SHOWN + 1))
    assert shown([FAULTLESS, REQUEST]) == [1, 0]


class Pictures:
    """A data set whose pictures all have the same labels."""

    ids = ("only",)

    def split(self, name: str) -> tuple[str, ...]:
        return self.ids

    def labels(self, name: str) -> Labels:
        return REQUEST


def test_people_alone_get_few_pictures_and_only_those_that_they_are_shown(
    config: Config, tree: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawing(jobs: Mapping[str, GenerationJob], settings: object) -> dict[str, list[Picture]]:
        return {key: [np.zeros((8, 8, 3), np.uint8)] * len(job.prompts) for key, job in jobs.items()}

    monkeypatch.setattr(gate, "generate_many", drawing)
    made = draw_gate(config, Pictures(), tree, Path("adapter"), NoDomain(DomainSettings(use="none"), tree))  # type: ignore[arg-type]
    assert {key: len(pictures) for key, pictures in made.pictures.items()} == {"A": SHOWN, "C": SHOWN} and made.found is None

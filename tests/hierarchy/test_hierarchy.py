"""The toy tree as the other modules see it, and the label checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ray.hierarchy import Hierarchy, load_hierarchy

TOY = Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml"


@pytest.fixture(scope="module")
def toy() -> Hierarchy:
    return load_hierarchy(TOY)


def test_toy_tree_is_the_agreed_one(toy: Hierarchy) -> None:
    phrases = {
        name: (attribute.root_id, *(pole.phrase for pole in attribute.poles.values()))
        for name, attribute in toy.attributes.items()
    }
    assert list(phrases.items()) == [
        ("edge.clarity", ("edge", "clear edges", "blurred edges")),
        ("brush.ground", ("brush", "clean ground", "speckled ground")),
        ("brush.surface", ("brush", "smooth brush", "banded brush")),
        ("light.modelling", ("light", "modelled light", "flat light")),
        ("light.contrast", ("light", "strong contrast", "washed contrast")),
        ("color.palette", ("color", "vivid palette", "muddy palette")),
        ("space.horizon", ("space", "level horizon", "tilted horizon")),
        ("composition.central", ("composition", "central placement", "cropped placement")),
        ("composition.thirds", ("composition", "thirds placement")),
        ("shape.completeness", ("shape", "whole shape", "chipped shape")),
    ]
    assert toy.exclusive == (
        frozenset({"+composition.central", "+composition.thirds"}),
        frozenset({"-composition.central", "+composition.thirds"}),
        frozenset({"-color.palette", "-light.contrast"}),
    )
    assert toy.name == "painting-toy"
    assert toy.attributes["light.contrast"].path == ("light", "light.tone")
    assert toy.content_hash == "3c97a4735d89c6ea", "trained artefacts and annotations refer to this hash"
    assert toy.phrase("-edge.clarity") == "blurred edges"
    assert toy.root_of("edge.clarity").label == "Edge relationship"
    assert [attribute.id for root in toy.roots for attribute in root.walk()] == list(toy.attributes)
    assert all(a.definition and a.cue and a.alternative_labels and a.applies_note for a in toy.attributes.values())


@pytest.mark.parametrize(
    ("prompt", "horizon", "brush"),
    [
        ("blue square over sea", True, True),
        ("Red CIRCLE in the Desert.", True, True),
        ("red triangle on green wall", False, False),
        ("green circles in season", False, False),
    ],
)
def test_applicability_is_by_whole_words(toy: Hierarchy, prompt: str, horizon: bool, brush: bool) -> None:
    assert toy.attributes["space.horizon"].applies_to(prompt) is horizon
    assert toy.attributes["brush.surface"].applies_to(prompt) is brush
    assert toy.attributes["edge.clarity"].applies_to(prompt)


PROMPT = "red circle over sea"


@pytest.mark.parametrize(
    ("positive", "negative", "prompt", "sentences"),
    [
        (["edge.clarity", "composition.thirds"], ["space.horizon", "light.contrast"], PROMPT, []),
        (
            ["edge.clarty"],
            [],
            PROMPT,
            ["There is no attribute 'edge.clarty' in hierarchy 'painting-toy' (did you mean 'edge.clarity'?)."],
        ),
        (
            ["edge.clarity"],
            ["edge.clarity"],
            PROMPT,
            ["Attribute 'edge.clarity' is both positive and negative."],
        ),
        (
            [],
            ["composition.thirds"],
            PROMPT,
            ["'-composition.thirds' does not exist: attribute 'composition.thirds' is one-sided (no negative)."],
        ),
        ([], ["edge.clarity", "edge.clarity"], PROMPT, ["'-edge.clarity' is listed 2 times."]),
        (
            ["composition.thirds"],
            ["composition.central"],
            PROMPT,
            ["'+composition.thirds' and '-composition.central' exclude each other."],
        ),
        (
            [],
            ["composition.central", "shape.completeness"],
            PROMPT,
            ["'-shape.completeness' cannot hold where '-composition.central' holds."],
        ),
        (
            ["space.horizon"],
            [],
            "red circle on green wall",
            [
                "Attribute 'space.horizon' does not apply to the prompt 'red circle on green wall', "
                "which has none of the words sea, field, desert."
            ],
        ),
    ],
)
def test_label_problems(toy: Hierarchy, positive: list[str], negative: list[str], prompt: str, sentences: list[str]) -> None:
    assert toy.problems(positive, negative, prompt) == sentences

"""The shipped trees: what the paper fixes of the painting hierarchy, its rules at work, and that another field needs no code."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from cpo_ray.hierarchy import Hierarchy, load_hierarchy
from cpo_ray.hierarchy.show import summary

FOLDER = Path(__file__).parents[2] / "hierarchy"


@pytest.fixture(scope="module")
def painting() -> Hierarchy:
    return load_hierarchy(FOLDER / "painting.yaml")


@pytest.fixture(scope="module")
def product() -> Hierarchy:
    return load_hierarchy(FOLDER / "product_photography.yaml")


def test_seven_roots_246_pairs_five_levels(painting: Hierarchy) -> None:
    assert summary(painting).startswith("7 roots, 246 pairs, 0 one-sided attributes, 5 levels, ")
    assert [root.label for root in painting.roots] == [
        "Brushstroke and texture",
        "Light and shadow",
        "Shape and posture",
        "Composition",
        "Perspective and space",
        "Color relationship",
        "Edge relationship",
    ]
    assert {len(attribute.path) for attribute in painting.attributes.values()} == {3}


def test_names_of_the_paper(painting: Hierarchy) -> None:
    composition = painting.root("composition")
    assert [node.label for node in composition.children] == [
        "Composition category",
        "Visual guidance",
        "Image richness",
        "Visual equilibrium",
        "Visual rhythm",
    ]
    assert [node.label for node in composition.children[0].children] == ["Symmetry", "Asymmetry", "Geometry"]
    assert painting.root("light").children[0].label == "Light aspect and quality"
    labels = {signed_id: pole.label for a in painting.attributes.values() for signed_id, pole in a.poles.items()}
    assert labels["+composition.axis_symmetric"] == "Axis-symmetric composition"
    assert labels["+composition.center_symmetric"] == "Center-symmetric composition"
    assert (labels["+composition.circular"], labels["-composition.circular"]) == (
        "Circular composition",
        "Closed circle without shape breaking",
    )
    assert (labels["+composition.radial"], labels["-composition.radial"]) == ("Radial composition", "Ambiguous center")
    assert labels["+composition.upward_triangle"] == "Upward triangle composition"
    assert labels["+composition.focal_point"] == "Focal point composition"
    assert (labels["+edge.clarity"], labels["-edge.clarity"]) == ("Clear edges", "Blurred edges")
    assert labels["-light.hard"] == "Soft and hard light"
    # The papers name these roots in two ways.
    assert "brushwork and texture" in painting.root("brush").alternative_labels
    assert "shape and form" in painting.root("shape").alternative_labels
    assert "color relations" in painting.root("color").alternative_labels


@pytest.mark.parametrize("file", ["painting.yaml", "product_photography.yaml"])
def test_every_entry_says_something_of_its_own(file: str) -> None:
    tree = load_hierarchy(FOLDER / file)
    attributes = tree.attributes.values()
    assert all(node.alternative_labels for node in tree.nodes())
    assert all(attribute.alternative_labels for attribute in attributes)
    for texts in ([a.definition for a in attributes], [a.cue for a in attributes], [a.label for a in attributes]):
        assert len(set(texts)) == len(texts)
    # A cue tells both sides of a pair: where to look, then what is seen if it is well, then if it is not.
    assert [a.id for a in attributes if a.negative is not None and a.cue.count(":") < 2] == []


def test_categories_of_one_kind_exclude_each_other(painting: Hierarchy) -> None:
    kinds = [[attribute.id for attribute in kind.attributes] for kind in painting.root("composition").children[0].children]
    assert [len(kind) for kind in kinds] == [4, 6, 12]
    for kind in kinds:
        for one, other in combinations(kind, 2):
            assert painting.problems([one, other], [], "any") == [f"'+{one}' and '+{other}' exclude each other."]


def test_the_papers_examples_are_possible(painting: Hierarchy) -> None:
    closed_circle = (["composition.axis_symmetric", "composition.circular"], ["composition.circular"])
    empty_rays = (["composition.center_symmetric", "composition.radial"], ["composition.radial"])
    for positive, negative in (closed_circle, empty_rays):
        assert painting.problems(positive, negative, "a rose window") == []


def test_negative_of_a_category_needs_its_positive(painting: Hierarchy) -> None:
    """CPO, S10: the negative alone is incomplete; for opposites both together are impossible."""
    assert painting.problems([], ["composition.circular"], "any") == [
        "'-composition.circular' requires '+composition.circular', which is not among the labels."
    ]
    assert painting.problems(["edge.clarity"], ["edge.clarity"], "any") == [
        "Attribute 'edge.clarity' is both positive and negative."
    ]
    categories = {attribute.id for attribute in painting.root("composition").children[0].walk()}
    assert {attribute.id for attribute in painting.attributes.values() if attribute.negative_is_flaw} == categories


@pytest.mark.parametrize(
    ("positive", "negative", "sentence"),
    [
        ([], ["light.hard", "light.soft"], "'-light.hard' and '-light.soft' exclude each other."),
        (["light.front"], ["light.back"], "'+light.front' and '-light.back' exclude each other."),
        (["color.analogous"], ["color.triadic"], "'+color.analogous' and '-color.triadic' exclude each other."),
        (["edge.focus"], ["composition.focal_point"], "'+edge.focus' cannot hold where '-composition.focal_point' holds."),
        (["shape.exaggeration"], ["shape.proportion"], "'+shape.exaggeration' cannot hold where '-shape.proportion' holds."),
        (["light.secondary"], [], "'+light.secondary' requires '+light.dominant', which is not among the labels."),
        (["space.flatness"], ["light.planes"], "'-light.planes' cannot hold where '+space.flatness' holds."),
    ],
)
def test_rules_of_the_craft(painting: Hierarchy, positive: list[str], negative: list[str], sentence: str) -> None:
    assert painting.problems(positive, negative, "any") == [sentence]


def test_another_field_is_another_file(product: Hierarchy) -> None:
    assert summary(product).startswith("5 roots, 25 pairs, 2 one-sided attributes, 4 levels, ")
    assert product.problems(["product.label", "staging.isolated"], ["staging.isolated"], "a can of paint") == []
    assert product.problems(["light.transparency"], [], "a wool scarf") == [
        "Attribute 'light.transparency' does not apply to the prompt 'a wool scarf', "
        "which has none of the words glass, bottle, perfume, vase, drink, jar."
    ]
    assert product.problems(["view.front", "view.top_down"], [], "a vase") == [
        "'+view.front' and '+view.top_down' exclude each other."
    ]

"""The toy tree as the other modules see it, the label checks, and every sentence of the validator."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hierarchy import Hierarchy, HierarchyError, load_hierarchy

TOY = Path(__file__).parents[1] / "hierarchy" / "painting_toy.yaml"

SMALL = """\
name: small
version: 1
description: two leaves
roots:
  - id: root
    label: Root
    attributes:
      - id: a
        label: A
        positive: {label: good a, phrase: good a}
        negative: {label: bad a, phrase: bad a}
        definition: what a is
        cue: where to look
      - id: b
        label: B
        positive: {label: good b, phrase: good b}
        definition: what b is
        cue: where to look
"""
POSITIVE_A, POSITIVE_B = "{label: good a, phrase: good a}", "{label: good b, phrase: good b}"


@pytest.fixture(scope="module")
def toy() -> Hierarchy:
    return load_hierarchy(TOY)


def load_text(folder: Path, text: str) -> Hierarchy:
    path = folder / "tree.yaml"
    path.write_text(text, encoding="utf-8")
    return load_hierarchy(path)


def problems_of(folder: Path, text: str) -> list[str]:
    """The problems of a text as `line: sentence`."""
    with pytest.raises(HierarchyError) as caught:
        load_text(folder, text)
    return [problem.removeprefix(f"{folder / 'tree.yaml'}:") for problem in caught.value.args]


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


def test_missing_requirement_is_a_label_problem(tmp_path: Path) -> None:
    tree = load_text(tmp_path, SMALL + "        requires: {positive: [-a]}\n")
    assert tree.problems(["b"], [], "any") == ["'+b' requires '-a', which is not among the labels."]
    assert tree.problems(["b"], ["a"], "any") == []


def test_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    tree = load_text(tmp_path, SMALL)
    rewritten = SMALL.replace("name: small\nversion: 1\n", "# a comment\nversion: '1'\nname: \"small\"\n")
    rewritten = rewritten.replace("definition: what a is", "definition: >\n          what\n          a is")
    assert re.fullmatch("[0-9a-f]{16}", tree.content_hash)
    assert load_text(tmp_path, rewritten) == tree
    for old, new in (("good a", "fine a"), ("where to look", "look there"), ("version: 1", "version: 2")):
        assert load_text(tmp_path, SMALL.replace(old, new)).content_hash != tree.content_hash


LEAF_B = SMALL[SMALL.index("      - id: b") :]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        pytest.param("", ["1: The file is empty where a hierarchy is expected."], id="empty file"),
        pytest.param(
            "name: [small\nroots: 1\n",
            ["2: This is not YAML: did not find expected ',' or ']'."],
            id="syntax",
        ),
        pytest.param(
            "name: a\nversion: \x07\n",
            ["2: This is not YAML: control characters are not allowed."],
            id="bytes",
        ),
        pytest.param("- a\n", ["1: Expected a mapping for the hierarchy, found a list."], id="not a mapping"),
        pytest.param(
            SMALL.replace("        cue: where to look\n      - id: b", "        cues: where to look\n      - id: b"),
            [
                "8: The key 'cue' is missing in attribute 'a'.",
                "13: Unknown key 'cues' in attribute 'a' (did you mean 'cue'?); valid keys are id, label, "
                "positive, definition, cue, negative, alternative_labels, applies_when, requires, forbids.",
            ],
            id="unknown and missing key",
        ),
        pytest.param(
            SMALL.replace("label: B", "label: B\n        label: C"),
            ["16: The key 'label' of attribute 'b' is already on line 15."],
            id="key twice",
        ),
        pytest.param(
            SMALL.replace("id: b", "id: a"),
            ["14: The id 'a' is already on line 8: an id occurs once in the file."],
            id="id twice",
        ),
        pytest.param(
            SMALL.replace("id: b", "id: root"),
            ["14: The id 'root' is already on line 5: an id occurs once in the file."],
            id="id of a node and of an attribute",
        ),
        pytest.param(
            SMALL.replace("id: b", "id: +b"),
            ["14: The id '+b' may have letters, digits, '_', '-' and '.' only, and no sign first."],
            id="signed id as id",
        ),
        pytest.param(
            SMALL.replace("phrase: bad a", "phrase: one two three four five six seven"),
            ["11: The phrase 'one two three four five six seven' has 7 words, more than 6: shorten it."],
            id="long phrase",
        ),
        pytest.param(
            SMALL.replace("phrase: good b", "phrase: Bad A"),
            ["16: The phrase 'Bad A' is already on line 11: each pole needs a phrase of its own."],
            id="phrase twice",
        ),
        pytest.param(
            SMALL.replace("label: B", "label: ' '"),
            ["15: A text is missing: the label of attribute 'b' is empty."],
            id="empty label",
        ),
        pytest.param(
            SMALL.replace("definition: what b is", "definition:"),
            ["17: A text is missing: the definition of attribute 'b' is empty."],
            id="null",
        ),
        pytest.param(
            SMALL + "exclusive:\n  - [+a, -c]\n  - [b, -a]\n  - [-b, +a]\n  - [+a]\n",
            [
                "20: In an exclusive group: There is no attribute 'c' in hierarchy 'small'.",
                "21: In an exclusive group: The signed id 'b' has no sign: write '+b' or '-b'.",
                "22: In an exclusive group: '-b' does not exist: attribute 'b' is one-sided (no negative).",
                "23: An exclusive group needs at least two different signed ids.",
            ],
            id="exclusive",
        ),
        pytest.param(
            SMALL + "        requires: {positive: [+c], negative: [+a]}\n",
            [
                "19: There is no negative in attribute 'b', so requires cannot speak of it.",
                "19: In requires of attribute 'b': There is no attribute 'c' in hierarchy 'small'.",
            ],
            id="requires",
        ),
        pytest.param(
            SMALL.replace("    attributes:", "    children: []\n    attributes:"),
            ["5: Expected either children or attributes in root 'root', found both."],
            id="children and attributes",
        ),
        pytest.param(
            SMALL[: SMALL.index("    attributes:")],
            ["5: Expected either children or attributes in root 'root', found neither."],
            id="neither children nor attributes",
        ),
        pytest.param(
            SMALL + "  - {id: bare, label: Bare, children: []}\n",
            ["19: There are no attributes below root 'bare': add one, or remove the root."],
            id="root without attributes",
        ),
        pytest.param(
            SMALL.replace("what a is", "what a is\n        requires: {positive: [+b]}") + "        requires: {positive: [+a]}\n",
            ["8: The requirements lead in a circle: '+a' requires '+b' requires '+a'."],
            id="circle",
        ),
        pytest.param(
            SMALL + "        requires: {positive: [-a]}\nexclusive:\n  - [+b, -a]\n",
            ["14: '+b' can never hold: by its requirements '+b' meets '-a', and they exclude each other."],
            id="requires what excludes it",
        ),
        pytest.param(
            SMALL.replace("  - id: root", "  - &r\n    id: root") + "  - {id: top, label: Top, children: [*r]}\n",
            ["5: An alias repeats this entry in children of root 'top': write each one out."],
            id="alias",
        ),
    ],
)
def test_validator_sentences(tmp_path: Path, text: str, problems: list[str]) -> None:
    assert problems_of(tmp_path, text) == problems


def test_requirements_conflict_through_others(tmp_path: Path) -> None:
    """b requires a, a requires c, and c cannot stand beside b, so b can never hold."""
    chain = SMALL.replace("what a is", "what a is\n        requires: {positive: [+c]}")
    chain += "        requires: {positive: [+a]}\n"
    chain += LEAF_B.replace(" b", " c").replace("B", "C") + "        forbids: {positive: [+b]}\n"
    assert problems_of(tmp_path, chain) == [
        "15: '+b' can never hold: by its requirements '+b' meets '+c', and they exclude each other."
    ]


def test_every_problem_is_listed_and_the_error_travels(tmp_path: Path) -> None:
    broken = SMALL.replace("id: b", "id: a").replace("phrase: bad a", "phrase: Good a").replace("label: Root", "label:")
    with pytest.raises(HierarchyError) as caught:
        load_text(tmp_path, broken)
    assert [int(problem.split(":")[1]) for problem in caught.value.args] == [6, 11, 14]
    assert str(caught.value) == "\n".join(caught.value.args)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_ten_thousand_attributes(tmp_path: Path) -> None:
    head = SMALL[: SMALL.index("      - id: a")]
    leaves = (LEAF_B.replace(" b", f" b{i}") for i in range(10_000))
    tree = load_text(tmp_path, head + "".join(leaves))
    assert len(tree.attributes) == 10_000
    assert tree.phrase("+b9999") == "good b9999"


def test_command_line(tmp_path: Path) -> None:
    def run(action: str, path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hierarchy", action, str(path)]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=TOY.parents[1], check=False)

    shown = run("show", TOY)
    assert shown.returncode == 0
    assert "│     ├─ brush.ground: clean ground / speckled ground\n" in shown.stdout
    (tmp_path / "bad.yaml").write_text(SMALL.replace("id: b", "id: a"))
    checked = run("check", tmp_path / "bad.yaml")
    assert checked.returncode == 1
    assert checked.stderr == f"{tmp_path / 'bad.yaml'}:14: The id 'a' is already on line 8: an id occurs once in the file.\n"
    assert run("check", tmp_path / "none.yaml").stderr.startswith(f"{tmp_path / 'none.yaml'}: The hierarchy cannot be read")

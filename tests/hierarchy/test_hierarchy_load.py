"""Every sentence of the validator with its line, what a file's content is, and what rules mean for labels."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cpo_ray.hierarchy import Hierarchy, HierarchyError, load_hierarchy

TOY = Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml"

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


def load_text(folder: Path, text: str) -> Hierarchy:
    path = folder / "tree.yaml"
    path.write_text(text, encoding="utf-8")
    return load_hierarchy(path)


def problems_of(folder: Path, text: str) -> list[str]:
    """The problems of a text as `line: sentence`."""
    with pytest.raises(HierarchyError) as caught:
        load_text(folder, text)
    return [problem.removeprefix(f"{folder / 'tree.yaml'}:") for problem in caught.value.args]


def test_missing_requirement_is_a_label_problem(tmp_path: Path) -> None:
    tree = load_text(tmp_path, SMALL + "        requires: {positive: [-a]}\n")
    assert tree.problems(["b"], [], "any") == ["'+b' requires '-a', which is not among the labels."]
    assert tree.problems(["b"], ["a"], "any") == []


def test_flaw_stands_beside_its_positive_and_not_alone(tmp_path: Path) -> None:
    """CPO, S10: the negative says which positive failed. For opposites the two are a contradiction."""
    tree = load_text(tmp_path, SMALL.replace("what a is", "what a is\n        requires: {negative: [+a]}"))
    assert tree.problems(["a"], ["a"], "any") == []
    assert tree.problems([], ["a"], "any") == ["'-a' requires '+a', which is not among the labels."]
    opposite = load_text(tmp_path, SMALL)
    assert opposite.problems(["a"], ["a"], "any") == ["Attribute 'a' is both positive and negative."]
    assert opposite.problems([], ["a"], "any") == []


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
            SMALL.replace("phrase: bad a", "phrase: 'bad, a'"),
            ["11: The phrase 'bad, a' has a comma, which parts phrases in a prompt: leave it out."],
            id="phrase with a comma",
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
            SMALL.replace("what a is", "what a is\n        requires: {negative: [+a]}") + "exclusive:\n  - [+a, -a]\n",
            ["8: '-a' can never hold: by its requirements '+a' meets '-a', and they exclude each other."],
            id="flaw of a positive that it excludes",
        ),
        pytest.param(
            SMALL.replace("what a is", "what a is\n        requires: {positive: [-a]}"),
            ["8: '+a' can never hold: by its requirements '+a' meets '-a', and they exclude each other."],
            id="positive that requires its negative",
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


def test_command_line(tmp_path: Path) -> None:
    def run(action: str, path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cpo_ray.hierarchy", action, str(path)]
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", cwd=TOY.parents[1], check=False, timeout=60
        )

    shown = run("show", TOY)
    assert shown.returncode == 0
    assert "│     ├─ brush.ground: clean ground / speckled ground\n" in shown.stdout
    (tmp_path / "bad.yaml").write_text(SMALL.replace("id: b", "id: a"))
    checked = run("check", tmp_path / "bad.yaml")
    assert checked.returncode == 1
    assert checked.stderr == f"{tmp_path / 'bad.yaml'}:14: The id 'a' is already on line 8: an id occurs once in the file.\n"
    assert "7 roots, 246 pairs, 0 one-sided attributes, 5 levels" in run("check", TOY.with_name("painting.yaml")).stdout
    assert run("check", tmp_path / "none.yaml").stderr.startswith(f"{tmp_path / 'none.yaml'}: The hierarchy cannot be read")

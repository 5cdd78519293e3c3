"""The other forms of a tree, each read back by a parser of that form: JSON Schema, SKOS, SVG, and the terminal's text."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import time
from math import cos, pi, radians
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

from cpo_ray.hierarchy import Hierarchy, HierarchyError, load_hierarchy
from cpo_ray.hierarchy.json_schema import answer_schema
from cpo_ray.hierarchy.show import drawing, part
from cpo_ray.hierarchy.skos import skos
from cpo_ray.hierarchy.svg import FONT, svg

FOLDER = Path(__file__).parents[2] / "hierarchy"
FILES = ["painting.yaml", "painting_toy.yaml", "product_photography.yaml"]


@pytest.fixture(scope="module", params=FILES)
def tree(request: pytest.FixtureRequest) -> Hierarchy:
    return load_hierarchy(FOLDER / request.param)


@pytest.fixture(scope="module")
def painting() -> Hierarchy:
    return load_hierarchy(FOLDER / "painting.yaml")


# JSON Schema


def test_answers_for_each_root(tree: Hierarchy) -> None:
    for root in tree.roots:
        schema = answer_schema(tree, root.id)
        Draft202012Validator.check_schema(schema)
        valid = Draft202012Validator(schema).is_valid
        attributes = list(root.walk())
        ids = [attribute.id for attribute in attributes]
        negatives = [attribute.id for attribute in attributes if attribute.negative is not None]
        assert valid({"positive_ids": ids, "negative_ids": negatives})
        assert valid({"positive_ids": [], "negative_ids": []})
        foreign = next((name for name in tree.attributes if name not in ids), "unknown")
        wrong: tuple[Any, ...] = (
            {"positive_ids": [foreign], "negative_ids": []},
            {"positive_ids": [f"+{ids[0]}"], "negative_ids": []},
            {"positive_ids": [ids[0]] * (len(ids) + 1), "negative_ids": []},
            {"positive_ids": []},
            {"positive_ids": [], "negative_ids": [], "mood": "fine"},
            ids,
        )
        for answer in wrong:
            assert not valid(answer), answer


def test_one_sided_attribute_has_no_negative_answer() -> None:
    toy = load_hierarchy(FOLDER / "painting_toy.yaml")
    valid = Draft202012Validator(answer_schema(toy, "composition")).is_valid
    assert valid({"positive_ids": ["composition.thirds"], "negative_ids": ["composition.central"]})
    assert not valid({"positive_ids": [], "negative_ids": ["composition.thirds"]})


def test_answer_for_the_whole_tree(tree: Hierarchy) -> None:
    schema = answer_schema(tree)
    assert schema["$comment"] == tree.content_hash
    valid = Draft202012Validator(schema).is_valid
    answer = {root.id: {"positive_ids": [next(root.walk()).id], "negative_ids": []} for root in tree.roots}
    assert valid(answer)
    assert not valid({**answer, tree.roots[0].id: answer[tree.roots[1].id]})
    del answer[tree.roots[0].id]
    assert not valid(answer)


def test_only_words_that_constrained_decoders_know(painting: Hierarchy) -> None:
    used = set(re.findall(r'"([$\w]+)":', json.dumps(answer_schema(painting, "edge"))))
    known = {"$schema", "$comment", "title", "description", "type", "properties", "required", "additionalProperties"}
    assert used == known | {"items", "enum", "maxItems", "positive_ids", "negative_ids"}


# SKOS


def test_concepts_of_the_scheme(tree: Hierarchy) -> None:
    document = json.loads(json.dumps(skos(tree, base="https://example.org/tree")))
    scheme, *entries = document["@graph"]
    concepts = {entry["@id"]: entry for entry in entries if entry["@type"] == "skos:Concept"}
    poles = sum(len(attribute.poles) for attribute in tree.attributes.values())
    assert len(concepts) == len(list(tree.nodes())) + len(tree.attributes) + poles
    assert scheme["hasTopConcept"] == [f"https://example.org/tree#{root.id}" for root in tree.roots]
    # Both directions agree, every concept is reached from the top, and no link leads to nothing.
    reached, waiting = set(), list(scheme["hasTopConcept"])
    while waiting:
        current = waiting.pop()
        reached.add(current)
        for below in concepts[current].get("narrower", []):
            assert concepts[below]["broader"] == current
            waiting.append(below)
    assert reached == set(concepts)
    # Every key is defined by the context, or a reader would silently drop it.
    assert {key for entry in (scheme, *entries) for key in entry if key[0] != "@"} <= document["@context"].keys()


def test_rules_in_skos(painting: Hierarchy) -> None:
    entries = {entry["@id"]: entry for entry in skos(painting)["@graph"]}
    ambiguous = entries["urn:hierarchy:painting#composition.radial/negative"]
    assert (ambiguous["notation"], ambiguous["prefLabel"]) == ("-composition.radial", "Ambiguous center")
    assert ambiguous["requires"] == ["urn:hierarchy:painting#composition.radial/positive"]
    radial = entries[ambiguous["broader"]]
    assert radial["definition"] == painting.attributes["composition.radial"].definition
    assert radial["note"] == painting.attributes["composition.radial"].cue
    together = [set(entry["member"]) for entry in entries.values() if entry["@type"] == "skos:Collection"]
    light = {"urn:hierarchy:painting#light.hard/negative", "urn:hierarchy:painting#light.soft/positive"}
    exaggerated = {
        "urn:hierarchy:painting#shape.exaggeration/positive",
        "urn:hierarchy:painting#shape.proportion/negative",
    }
    assert any(light < members for members in together)
    assert exaggerated in together


# SVG

SVG = "{http://www.w3.org/2000/svg}"


def test_picture_shows_every_label_and_phrase(tree: Hierarchy) -> None:
    texts = {"".join(text.itertext()) for text in ElementTree.fromstring(svg(tree)).iter(f"{SVG}text")}
    assert {node.label for node in tree.nodes()} <= texts
    for attribute in tree.attributes.values():
        both = [pole.phrase for pole in attribute.poles.values()]
        assert " / ".join(both) in texts or " / ".join(reversed(both)) in texts


def test_phrases_of_the_picture_neither_overlap_nor_leave_it(tree: Hierarchy) -> None:
    picture = ElementTree.fromstring(svg(tree))
    half = float(picture.attrib["viewBox"].split()[2]) / 2
    phrases = [text for text in picture.iter(f"{SVG}text") if text.get("text-anchor") in ("start", "end")]
    assert len(phrases) == len(tree.attributes)
    radius = abs(float(phrases[0].attrib["x"]))
    assert 2 * pi * radius / len(phrases) > FONT
    for text in phrases:
        degrees = float(re.findall(r"rotate\((.*)\)", text.attrib["transform"])[0])
        assert cos(radians(degrees)) > -1e-3, "stands on its head"
        assert radius + 0.5 * FONT * len("".join(text.itertext())) < half


def test_picture_has_a_color_for_each_root(tree: Hierarchy) -> None:
    fills = {path.get("fill") for path in ElementTree.fromstring(svg(tree)).iter(f"{SVG}path")}
    assert len(fills) == len(tree.roots)


SMALL = """\
name: "R&D <tree>"
version: 1
description: marks & quotes
roots:
  - id: only
    label: "Only <root> & more"
    attributes:
      - id: mark
        label: Mark "it"
        definition: A "quoted" \\ text with <tags> & signs.
        cue: Ünïcode ± ≤.
        positive: {label: Good <b>, phrase: "good <b> & so"}
"""


def test_signs_that_the_formats_use_themselves(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    small = load_hierarchy(tmp_path / "small.yaml")
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(svg(small)).iter(f"{SVG}text")]
    assert texts == ["Only <root> & more", "good <b> & so", "R&D <tree>"]
    scheme, _, mark, _ = json.loads(json.dumps(skos(small)))["@graph"]
    assert scheme["@id"] == "urn:hierarchy:R%26D%20%3Ctree%3E"
    assert (mark["definition"], mark["note"]) == ('A "quoted" \\ text with <tags> & signs.', "Ünïcode ± ≤.")


# Terminal


def test_a_branch_and_an_attribute_in_the_terminal(painting: Hierarchy) -> None:
    branch = list(part(painting, "edge.hierarchy"))
    assert branch[:3] == [
        "edge.hierarchy: Edge hierarchy",
        "├─ edge.focus_edges: Focus",
        "│  ├─ edge.focus: sharpest edge at the focus / sharpest edge away from focus",
    ]
    assert len(branch) == 1 + 2 + 4
    circular = "\n".join(part(painting, "composition.circular"))
    assert "below: Composition › Composition category › Geometry" in circular
    assert "-composition.circular: Closed circle without shape breaking" in circular
    assert "-composition.circular requires: +composition.circular" in circular
    assert re.search(r"\+composition.circular excludes: .*\+composition.upward_triangle", circular)
    with pytest.raises(HierarchyError, match=r"no node or attribute 'edge.claritty' .* \(did you mean 'edge.clarity'\?\)"):
        list(part(painting, "edge.claritty"))


def test_command_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cpo_ray.hierarchy", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", cwd=FOLDER.parent, check=False, timeout=60
        )

    file, output = "hierarchy/product_photography.yaml", tmp_path / "view.json"
    done = run("export", "json-schema", file, "--root", "view", "--output", str(output))
    assert (done.returncode, done.stdout) == (0, f"wrote {output}\n")
    assert json.loads(output.read_text(encoding="utf-8")) == answer_schema(load_hierarchy(FOLDER.parent / file), "view")
    assert ElementTree.fromstring(run("export", "svg", file).stdout).tag == f"{SVG}svg"
    unknown = run("export", "json-schema", file, "--root", "edge")
    assert unknown.returncode == 1
    assert unknown.stderr == (
        "There is no root 'edge' in hierarchy 'product-photography'; its roots are product, light, staging, view, finish.\n"
    )
    assert run("diff", file, file).stdout.endswith("nothing changed\n")
    assert run("export", "svg", file, "--root", "view").returncode == 2


# Size


def generated(folder: Path, count: int) -> Path:
    """A tree with `count` attributes, ten to a node and a hundred nodes to a root, with rules of every kind."""
    lines = ["name: large", "version: 1", "description: generated", "exclusive:"]
    lines += [f"  - [+a{n}, +a{n + 1}]" for n in range(0, count, 10)]
    lines += ["roots:"]
    for n in range(count):
        if n % 1000 == 0:
            lines += [f"  - id: root{n}", f"    label: Root {n}", "    children:"]
        if n % 10 == 0:
            lines += [f"      - id: node{n}", f"        label: Node {n}", "        attributes:"]
        lines += [
            f"          - id: a{n}",
            f"            label: Attribute {n}",
            f"            definition: what {n} is",
            f"            cue: where {n} is seen",
            f"            positive: {{label: Good {n}, phrase: good {n}}}",
            f"            negative: {{label: Bad {n}, phrase: bad {n}}}",
            f"            requires: {{negative: [+a{n}]}}",
        ]
        if n % 10 == 9:
            lines += [f"            forbids: {{positive: [-a{n - 1}]}}"]
    path = folder / f"{count}.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_ten_thousand_attributes_take_linear_time(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        path = generated(tmp_path, count)
        start = time.process_time()
        large = load_hierarchy(path)
        assert len(list(drawing(large))) == 1 + count // 1000 + count // 10 + count + count // 10
        assert svg(large).count("<circle") == count
        assert len(skos(large)["@graph"]) == 1 + count // 1000 + count // 10 + 3 * count + count // 10 + count // 10
        return time.process_time() - start

    # Python's own collector walks over all that lives again and again; what is measured is our work.
    gc.disable()
    try:
        small, large = seconds(1000), seconds(10_000)
    finally:
        gc.enable()
    assert large < 10
    assert large < 30 * small, "quadratic work would take a hundred times as long"

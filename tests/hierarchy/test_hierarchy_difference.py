"""What changed between two versions of a tree, and which annotated rows that touches."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpo_ray.hierarchy import Hierarchy, difference, load_hierarchy, touched
from cpo_ray.hierarchy.difference import Difference

TOY = Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml"

#: A change of the file → the lines that tell of it, and the attributes to ask again.
CHANGES = {
    "definition": (
        ("its ground at once or dissolves", "its ground or melts"),
        ["meaning: edge.clarity: definition"],
        ["edge.clarity"],
    ),
    "applicability": (
        ("              prompt_has_any: [circle, square]\n", ""),
        ["meaning: brush.surface: applies_when"],
        ["brush.surface"],
    ),
    "negative label": (
        ("label: Flat light,", "label: Level light,"),
        ["meaning: light.modelling: negative label"],
        ["light.modelling"],
    ),
    "phrase": (("phrase: muddy palette", "phrase: dirty palette"), ["wording: color.palette: negative phrase"], []),
    "rule": (("              negative: [-composition.central]\n", ""), ["rules: shape.completeness: forbids"], []),
    "exclusive": (
        ("  - [-color.palette, -light.contrast]\n", "  - [-color.palette, -light.contrast, -light.modelling]\n"),
        [
            "rules: exclusive group added: -color.palette, -light.contrast, -light.modelling",
            "rules: exclusive group removed: -color.palette, -light.contrast",
        ],
        [],
    ),
    "name of a node": (("label: Tonal range", "label: Range of tones"), ["place: node light.tone: label"], []),
    "id": (("id: space.horizon", "id: space.level"), ["renamed: space.horizon is space.level now"], []),
    "comment": (("version: 1", "# the first\nversion: 1"), ["nothing changed"], []),
}


def changed(folder: Path, *replacements: tuple[str, str]) -> tuple[Hierarchy, Hierarchy, Difference]:
    """The toy tree, a version of it with the replacements made, and the difference."""
    text = TOY.read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    (folder / "new.yaml").write_text(text, encoding="utf-8")
    old_tree, new_tree = load_hierarchy(TOY), load_hierarchy(folder / "new.yaml")
    return old_tree, new_tree, difference.difference(old_tree, new_tree)


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_by_what_it_does(tmp_path: Path, name: str) -> None:
    replacement, lines, to_ask = CHANGES[name]
    old, new, found = changed(tmp_path, replacement)
    head, *told = difference.told(old, new, found)
    assert head == f"painting-toy 1 ({old.content_hash}) → painting-toy 1 ({new.content_hash})"
    assert told == lines
    assert list(found.to_ask) == to_ask


def test_added_and_removed_attributes(tmp_path: Path) -> None:
    text = TOY.read_text(encoding="utf-8")
    thirds = re.search(r" +- id: composition\.thirds.*?cropped\.\n", text, re.DOTALL)
    assert thirds is not None
    without = [(thirds.group(), ""), ("  - [+composition.central, +composition.thirds]\n", "")]
    old, new, found = changed(tmp_path, *without, ("  - [-composition.central, +composition.thirds]\n", ""))
    assert (found.added, found.removed) == ((), ("composition.thirds",))
    assert "removed: composition.thirds: thirds placement" in list(difference.told(old, new, found))
    back = difference.difference(new, old)
    assert (back.added, back.removed, back.to_ask) == (("composition.thirds",), (), ("composition.thirds",))


def shards(folder: Path, rows: list[tuple[str, list[str], list[str]]], hierarchy_hash: str) -> None:
    """Rows of id, positive and negative ids, spread over two files as annotated shards are."""
    folder.mkdir(exist_ok=True)
    for number, part in enumerate((rows[::2], rows[1::2])):
        columns = {
            "id": [row[0] for row in part],
            "image": [b"never read"] * len(part),
            "prompt": ["red circle over sea"] * len(part),
            "positive_ids": [row[1] for row in part],
            "negative_ids": [row[2] for row in part],
            "hierarchy_hash": [hierarchy_hash] * len(part),
        }
        pq.write_table(pa.table(columns), folder / f"annotated-{hierarchy_hash}-{number}.parquet")


def test_rows_that_a_change_touches(tmp_path: Path) -> None:
    """Meaning of edge.clarity, phrase of light.contrast, id of space.horizon, and a new rule that row c breaks."""
    old, new, found = changed(
        tmp_path,
        ("its ground at once or dissolves", "its ground or melts"),
        ("phrase: washed contrast", "phrase: pale contrast"),
        ("id: space.horizon", "id: space.level"),
        ("exclusive:\n", "exclusive:\n  - [-space.level, +brush.ground]\n"),
    )
    rows = [
        ("a", ["edge.clarity", "light.contrast"], []),
        ("b", ["brush.ground"], ["edge.clarity"]),
        ("c", ["brush.ground"], ["space.horizon", "light.contrast"]),
        ("d", ["brush.ground"], ["light.modelling"]),
    ]
    shards(tmp_path / "data", rows, old.content_hash)
    shards(tmp_path / "data", [("e", ["edge.clarity"], [])], "of-another-tree")
    counts = touched.touched(tmp_path / "data", old, new, found)
    assert (counts.total, counts.foreign) == (5, 1)
    assert dict(counts.rows) == {"removed": 0, "renamed": 1, "meaning": 2, "wording": 2, "rules": 0, "place": 0}
    assert counts.labels["meaning"] == {"edge.clarity": 2}
    assert counts.rejected == [("c", "'+brush.ground' and '-space.level' exclude each other.")]
    assert list(touched.told(tmp_path / "data", old, counts, found)) == [
        f"{tmp_path / 'data'}: 4 rows annotated with painting-toy 1",
        "1 rows were annotated with another hierarchy and are not counted below",
        "renamed: touches 1 rows (space.horizon in 1)",
        "meaning: touches 2 rows (edge.clarity in 2)",
        "wording: touches 2 rows (light.contrast in 2)",
        "rejected by the new hierarchy: 1 rows, such as 'c': '+brush.ground' and '-space.level' exclude each other.",
        "to ask on all 4 rows: edge.clarity",
    ]


def test_a_label_that_lost_its_pole_is_touched_and_not_rejected(tmp_path: Path) -> None:
    old, new, found = changed(tmp_path, ("            negative: {label: Flat light, phrase: flat light}\n", ""))
    shards(tmp_path / "data", [("a", [], ["light.modelling"]), ("b", ["light.modelling"], [])], old.content_hash)
    counts = touched.touched(tmp_path / "data", old, new, found)
    assert (counts.rows["meaning"], counts.rejected) == (2, [])


def test_a_folder_that_holds_no_annotations(tmp_path: Path) -> None:
    old, new, found = changed(tmp_path)
    with pytest.raises(ValueError, match=r"There is no Parquet file in .*: give a folder of annotated shards"):
        touched.touched(tmp_path, old, new, found)
    pq.write_table(pa.table({"id": ["a"], "prompt": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet has no column positive_ids, negative_ids, hierarchy_hash"):
        touched.touched(tmp_path, old, new, found)

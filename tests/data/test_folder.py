"""Folders as people have them: every file is listed or set aside with its reason, whatever wrote the words about the pictures."""

from __future__ import annotations

import io
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cpo_ray.data.importer import import_folder
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.data.sources.folder import read_pictures
from cpo_ray.data.sources.listed import Folder
from cpo_ray.hierarchy import Hierarchy, load_hierarchy

PROMPT = "red circle over sea"
ROW = {"prompt": PROMPT, "positive": ["edge.clarity"], "negative": ["color.palette"]}


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return load_hierarchy(Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml")


def picture(path: Path, kind: str = "png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 30, 30)).save(buffer, kind)
    path.write_bytes(buffer.getvalue())


def prompts(folder: Folder) -> dict[str, object]:
    return {one.name: one.entry.fields.get("prompt") for one in folder.pictures}


def _lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _table(rows: list[dict[str, object]], separator: str, rest: str) -> str:
    head = separator.join(("file_name", "caption", "positive", "negative"))
    return "\r\n".join([head, *(f"{row['file_name']}{separator}{rest.format(prompt=row['prompt'])}" for row in rows)])


#: Name of the metadata file → what writes rows into it.
WRITERS: dict[str, Callable[[list[dict[str, object]]], bytes]] = {
    "metadata.jsonl": lambda rows: _lines(rows).encode(),
    "metadata.jsonl with CRLF and a mark": lambda rows: b"\xef\xbb\xbf" + _lines(rows).replace("\n", "\r\n").encode(),
    "metadata.jsonl in UTF-16": lambda rows: _lines(rows).encode("utf-16"),
    "metadata.jsonl that is one array": lambda rows: json.dumps(rows, indent=2).encode(),
    "metadata.json": lambda rows: json.dumps(rows).encode(),
    "metadata.json by file": lambda rows: json.dumps(
        {str(row["file_name"]): {k: v for k, v in row.items() if k != "file_name"} for row in rows}
    ).encode(),
    "metadata.csv": lambda rows: _table(rows, ",", '"{prompt}",edge.clarity,color.palette').encode(),
    "metadata.csv with semicolons": lambda rows: _table(rows, ";", '{prompt};["edge.clarity"];["color.palette"]').encode(
        "utf-8-sig"
    ),
}


@pytest.mark.parametrize("form", WRITERS)
def test_a_metadata_file_of_any_form_is_read(tmp_path: Path, tree: Hierarchy, form: str) -> None:
    folder = tmp_path / "pictures"
    for name in ("a.png", "sub/b.png"):
        picture(folder / name)
    rows: list[dict[str, object]] = [{"file_name": name, **ROW} for name in ("a.png", "sub/b.png")]
    (folder / form.split(" ")[0]).write_bytes(WRITERS[form](rows))
    report = import_folder(folder, tmp_path / "shards", tree)
    assert (report.kept, report.set_aside, report.unlabelled) == (2, 0, 0)
    data = AnnotatedDataset.open(tmp_path / "shards")
    assert data.ids == ("a.png", "sub/b.png")
    assert {data.labels(name).prompt for name in data.ids} == {PROMPT}
    assert data.labels("sub/b.png").positive_ids == ("edge.clarity",)


def test_a_parquet_of_metadata_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    pq.write_table(pa.Table.from_pylist([{"file_name": "a.png", "text": PROMPT}]), tmp_path / "metadata.parquet")
    assert prompts(read_pictures(tmp_path)) == {"a.png": PROMPT}


def test_captions_beside_pictures_are_read_and_the_pictures_are_told_to_lack_attributes(tmp_path: Path, tree: Hierarchy) -> None:
    folder = tmp_path / "pictures"
    picture(folder / "000.png")
    picture(folder / "001.JPG", "jpeg")
    (folder / "000.txt").write_text(" red circle\nover sea \n")
    (folder / "001.json").write_text(json.dumps({"caption": PROMPT}))
    report = import_folder(folder, tmp_path / "shards", tree)
    assert (report.kept, report.set_aside, report.unlabelled) == (2, 0, 2)
    assert "prompts: 1 from '.txt', 1 from 'caption'" in report.summary()
    assert "2 pictures have no attributes; jobs/annotate.py labels them" in report.summary()
    data = AnnotatedDataset.open(tmp_path / "shards")
    assert [data.labels(name).prompt for name in data.ids] == [PROMPT, PROMPT]


def test_metadata_in_sub_folders_speaks_of_their_pictures_and_names_their_split(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        picture(tmp_path / split / "000.png")
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps({"file_name": "000.png", "text": split}))
    found = read_pictures(tmp_path)
    assert prompts(found) == {f"{split}/000.png": split for split in ("test", "train", "validation")}
    assert {one.name.split("/")[0]: one.split for one in found.pictures} == {s: s for s in ("train", "validation", "test")}


def test_a_published_split_is_kept_in_the_shards_and_told(tmp_path: Path, tree: Hierarchy) -> None:
    for number, folder in enumerate(("Train", "val", "rest")):
        picture(tmp_path / "in" / folder / "000.png")
        (tmp_path / "in" / folder / "000.txt").write_text(f"{PROMPT} {number}")
    report = import_folder(tmp_path / "in", tmp_path / "out", tree)
    data = AnnotatedDataset.open(tmp_path / "out")
    assert data.published == {"Train/000.png": "train", "val/000.png": "validation"}
    assert "published splits are kept: train 1, validation 1; 1 pictures without one are split by their ids" in report.summary()
    for folder in ("rest", "val"):
        shutil.rmtree(tmp_path / "in" / folder)
    report = import_folder(tmp_path / "in", tmp_path / "again", tree)
    assert "published splits are kept: train 1; there are no validation and no test pictures" in report.summary()


def test_names_as_other_systems_write_them_find_their_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "sub" / "000.png")
    picture(tmp_path / unicodedata.normalize("NFD", "café.png"))
    picture(tmp_path / "UPPER.PNG")
    written = ("sub\\000.png", unicodedata.normalize("NFC", "café.png"), "upper.png")
    (tmp_path / "metadata.jsonl").write_text(_lines([{"file_name": name, "prompt": name} for name in written]))
    found = read_pictures(tmp_path)
    assert set(prompts(found).values()) == set(written) and not found.set_aside


def test_names_without_a_suffix_are_pictures_and_find_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "000")
    picture(tmp_path / "001.png")
    picture(tmp_path / "002.jpg_large", "jpeg")
    (tmp_path / "000.txt").write_text("beside")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "001", "prompt": "named"}))
    found = read_pictures(tmp_path)
    assert prompts(found) == {"000": "beside", "001.png": "named", "002.jpg_large": None} and not found.set_aside


def test_a_split_that_metadata_names_counts_and_an_unknown_one_is_told(tmp_path: Path) -> None:
    splits = enumerate(("val", "", "x"))
    rows = [{"file_name": f"train/{number}.png", "prompt": PROMPT, "split": split} for number, split in splits]
    for row in rows:
        picture(tmp_path / str(row["file_name"]))
    (tmp_path / "metadata.jsonl").write_text(_lines(rows))  # type: ignore[arg-type]
    found = read_pictures(tmp_path)
    assert [(one.name, one.split) for one in found.pictures] == [("train/0.png", "validation"), ("train/1.png", "train")]
    assert [one.reason for one in found.set_aside] == [
        "the split 'x' is none of train, validation and test; name one of them, or leave the column out"
    ]


def test_columns_that_were_taken_and_those_that_were_not_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("image_path,caption,score\na.png,a house,0.3\n")
    assert read_pictures(tmp_path).told() == "prompts: 1 from 'caption'; also file_name from 'image_path'; not read: 'score'"
    (tmp_path / "metadata.csv").write_text("image_path,caption\na.png,a house, red\n")
    (broken,) = read_pictures(tmp_path).set_aside
    assert "more cells than the header; put texts that hold ',' in double quotes" in broken.reason


def test_a_text_and_a_json_beside_one_picture_are_both_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"positive": ["edge.clarity"], "negative": [], "width": 20}))
    (tmp_path / "a.txt").write_text(PROMPT)
    (one,) = read_pictures(tmp_path).pictures
    assert one.entry.fields == {"prompt": PROMPT, "positive": ["edge.clarity"], "negative": []}
    assert (one.entry.source, one.entry.unread) == ("a.json and a.txt", ("width",))


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def closed(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = read_pictures(tmp_path)
    assert set(prompts(found)) == {"a.png"}
    assert [one.reason for one in found.set_aside] == ["the folder closed cannot be read: Permission denied"]


def test_every_file_is_listed_or_set_aside_with_its_reason(tmp_path: Path) -> None:
    picture(tmp_path / "real.png")
    picture(tmp_path / "blob")  # without a suffix, as in a hub's cache
    (tmp_path / "link.png").symlink_to(tmp_path / "blob")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "LICENSE").write_text("words")
    (tmp_path / "unread.txt").write_text("no picture of this name")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    found = read_pictures(tmp_path)
    assert set(prompts(found)) == {"real.png", "blob", "link.png"}
    reasons = {one.id: one.kind for one in found.set_aside}
    assert reasons == {
        "nowhere.png": "unreadable file",
        "pipe.png": "unreadable file",
        "notes.md": "no picture",
        "LICENSE": "no picture",
        "unread.txt": "no picture",
    }


def test_a_caption_that_nobody_reads_is_said_to_be(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("another prompt")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "prompt": PROMPT}))
    found = read_pictures(tmp_path)
    assert prompts(found) == {"a.png": PROMPT}
    assert [(one.kind, one.reason) for one in found.set_aside] == [("unused caption", "metadata.jsonl:1 speaks of a.png already")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metadata.json", b"{", "metadata.json: the file is not valid JSON"),
        ("metadata.csv", "file_name,text\na.png,caf\xe9\n".encode("cp1252"), "line 2: byte 0xe9 is not UTF-8; save the file as"),
        ("metadata.parquet", b"PAR1", "metadata.parquet cannot be read"),
        ("a.txt", "caf\xe9".encode("cp1252"), "a.txt, line 1: byte 0xe9 is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, tree: Hierarchy, name: str, content: bytes, sentence: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    assert any(sentence in one.reason for one in read_pictures(tmp_path).set_aside)
    with pytest.raises(DataError, match=r"no picture of .* could be kept"):
        import_folder(tmp_path, tmp_path / "shards", tree)
    assert not (tmp_path / "shards").exists() or not list((tmp_path / "shards").iterdir())

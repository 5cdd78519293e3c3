"""Folders, Parquet and tars as they are found: what can be read goes on, the rest is set aside with a reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.mixed_folder import encoded, mixed_folder, rotated

from cpo_ray.annotation.listing import Listing, list_pictures
from cpo_ray.annotation.pictures import prepare
from cpo_ray.config.annotation import PictureSource
from cpo_ray.core.prompts import Labels
from cpo_ray.data.importer import import_folder
from cpo_ray.data.picture import MAX_BYTES, PictureError
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.data.sources.extent import read
from cpo_ray.hierarchy import load_hierarchy


def listed(path: Path, **columns: Any) -> Listing:
    return list_pictures(PictureSource(path=path, **columns))


def reasons(listing: Listing) -> dict[str, str]:
    """Id → why it cannot be prepared, or ""."""
    found = {}
    for entry, data in zip(listing.entries, read(entry.extent for entry in listing.entries), strict=True):
        try:
            if isinstance(data, PictureError):
                raise data
            prepare(entry.id, entry.prompt, data, 64, "png")
            found[entry.id] = ""
        except PictureError as error:
            found[entry.id] = str(error)
    return found


def test_a_folder_of_mixed_formats(tmp_path: Path) -> None:
    expected = mixed_folder(tmp_path)
    listing = listed(tmp_path)
    found = reasons(listing)
    assert sorted(found) == sorted(expected) and len(found) == 20
    assert [(one.source, one.kind) for one in listing.set_aside] == [("notes.txt", "no picture")]
    for name, reason in expected.items():
        assert (reason in found[name] and found[name]) if reason else not found[name], (name, found[name])


def test_pictures_are_seen_upright_on_white_and_in_color(tmp_path: Path) -> None:
    half_black = io.BytesIO()
    Image.new("RGBA", (32, 32), (0, 0, 0, 128)).save(half_black, "png")
    picture = prepare("a", "", half_black.getvalue(), 64, "png")
    assert picture.pixels().getpixel((0, 0)) == (127, 127, 127)
    turned = prepare("b", "", rotated(), 64, "png")
    assert turned.size == turned.seen_size == (48, 64)


def test_metadata_gives_prompts_and_ids_and_its_bad_lines_are_set_aside(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    lines = [
        '{"file_name": "a.png", "prompt": " a house "}',
        '{"file_name": "./sub/c.png", "text": "a field", "id": "field"}',
        '{"file_name": "d.png", "id": "a.png"}',
        "{",
        '{"file_name": "b.png", "prompt": 3}',
        '{"file_name": "gone.png", "prompt": "x"}',
        '{"file_name": "../outside.png", "prompt": "x"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    listing = listed(tmp_path)
    assert [(e.id, e.prompt) for e in listing.entries] == [("a.png", "a house"), ("field", "a field")]
    assert sorted((s.source, s.kind) for s in listing.set_aside) == [
        ("metadata.jsonl:3", "duplicate id"),
        ("metadata.jsonl:4", "broken line"),
        ("metadata.jsonl:5", "missing or wrong field"),
        ("metadata.jsonl:6", "unreadable file"),
        ("metadata.jsonl:7", "path leaves the folder"),
    ]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded())
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    (folder / "around").symlink_to(tmp_path)
    listing = listed(folder)
    assert not listing.entries and {s.kind for s in listing.set_aside} == {"path leaves the folder"}
    assert {s.source for s in listing.set_aside} == {"link.png", "around/secret.png"}


def test_captions_and_metadata_are_read_in_every_form_that_the_import_reads(tmp_path: Path) -> None:
    for name in ("a.png", "sub/B.PNG", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    (tmp_path / "a.txt").write_text("a house\n")
    (tmp_path / "metadata.csv").write_text("file_name;caption\r\nsub\\b.png;a field\r\n")
    listing = listed(tmp_path)
    assert [(e.id, e.prompt) for e in listing.entries] == [("a.png", "a house"), ("c.png", ""), ("sub/B.PNG", "a field")]
    assert not listing.set_aside


def test_a_file_that_goes_away_or_is_too_large_is_set_aside_when_its_turn_comes(tmp_path: Path) -> None:
    for name in ("gone.png", "here.png", "long.png", "short.png"):
        (tmp_path / name).write_bytes(encoded())
    os.truncate(tmp_path / "long.png", MAX_BYTES + 1)
    listing = listed(tmp_path)
    (tmp_path / "gone.png").unlink()
    os.truncate(tmp_path / "short.png", 10)
    found = reasons(listing)
    assert "cannot be read" in found["gone.png"] and found["here.png"] == ""
    assert "larger than 64 MiB" in found["long.png"] and "ends after 10 of" in found["short.png"]


# ---- Parquet


def test_parquet_with_bytes_or_structs_of_bytes(tmp_path: Path) -> None:
    image = encoded()
    structs = [{"bytes": image, "path": None}, {"bytes": None, "path": "/etc/passwd"}, {"bytes": image, "path": "x"}]
    table = pa.table({"image": structs, "caption": ["a house", None, " a field "]})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": [image, b"text"], "id": ["x", "y"], "caption": ["", ""]}), tmp_path / "a.parquet")
    listing = listed(tmp_path, prompt_column="caption")
    assert [(e.id, e.prompt, e.source) for e in listing.entries] == [
        ("x", "", "a.parquet:0"),
        ("y", "", "a.parquet:1"),
        ("b.parquet:0", "a house", "b.parquet:0"),
        ("b.parquet:1", "", "b.parquet:1"),
        ("b.parquet:2", "a field", "b.parquet:2"),
    ]
    found = reasons(listing)
    assert [name for name, reason in found.items() if not reason] == ["x", "b.parquet:0", "b.parquet:2"]
    assert found["b.parquet:1"] == "the row holds no image bytes"
    # One row group after another, in any order that is asked for.
    back = list(read(entry.extent for entry in listing.entries[::-1]))
    assert back[0] == back[2] == image


def test_parquet_that_is_none_or_lacks_the_column(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "a.png").write_bytes(encoded())
    listing = listed(tmp_path)
    assert [e.id for e in listing.entries] == ["a.png"] and "cannot be read as Parquet" in listing.set_aside[0].reason
    pq.write_table(pa.table({"picture": [b""], "id": ["x"]}), tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"no column 'image', as pictures\.\*_column says; choose among picture, id"):
        listed(tmp_path, image_column="image")


def test_columns_are_found_by_name_and_type_and_splits_by_the_files_name(tmp_path: Path) -> None:
    image = {"bytes": encoded(), "path": "x.png"}
    for name, more in (("train-00000-of-00001.parquet", {"id": [7]}), ("data/val.parquet", {"label": [3]})):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"pixel": [image], "text": ["a house"], **more}), tmp_path / name)
    listing = listed(tmp_path)
    assert [(e.id, e.prompt, e.split) for e in listing.entries] == [
        ("7", "a house", "train"),
        ("data/val.parquet:0", "a house", "validation"),
    ]
    assert listing.told.startswith("prompts: 2 from 'text'; not read: 'label'\npublished splits are kept: train 1, validation 1;")


def test_parquet_and_tars_are_imported_as_they_are_annotated(tmp_path: Path) -> None:
    tree = load_hierarchy(Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml")
    (tmp_path / "in").mkdir()
    image = {"bytes": encoded(), "path": None}
    labels = {"positive": [["edge.clarity"]] * 2, "negative": [["color.palette"], []]}
    pq.write_table(
        pa.table({"image": [image] * 2, "caption": ["a house", "a field"], **labels}), tmp_path / "in" / "test.parquet"
    )
    tar_of(tmp_path / "in" / "part.tar", [("train/1.png", encoded()), ("train/1.txt", b"a hill")])
    report = import_folder(tmp_path / "in", tmp_path / "out", tree)
    data = AnnotatedDataset.open(tmp_path / "out")
    assert (report.kept, report.set_aside, report.unlabelled) == (3, 0, 1)
    assert data.published == {"test.parquet:0": "test", "test.parquet:1": "test", "part.tar/train/1": "train"}
    assert data.labels("test.parquet:0") == Labels("a house", ("edge.clarity",), ("color.palette",))
    assert data.images(["part.tar/train/1"]) == [encoded()]
    # One file alone, and the shards themselves, whose labels and splits are kept.
    assert import_folder(tmp_path / "in" / "part.tar", tmp_path / "one", tree).kept == 1
    import_folder(tmp_path / "out", tmp_path / "again", tree)
    again = AnnotatedDataset.open(tmp_path / "again")
    assert (again.published, again.fingerprint) == (data.published, data.fingerprint)


def _again(value: str | bytes, times: int) -> pa.Array:
    """One value many times, held once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [value])


def _varint(value: int, width: int) -> bytes:
    """A whole number as Parquet's metadata holds it, in more bytes than it needs."""
    parts = [(value * 2 >> 7 * place) & 127 for place in range(width)]
    return bytes(part | 128 for part in parts[:-1]) + bytes(parts[-1:])


def _lie(path: Path) -> None:
    """Have the end of the file say that its column unpacks to 100 kB."""
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data, said = path.read_bytes(), _varint(column.total_uncompressed_size, 4)
    assert said in data
    path.write_bytes(data.replace(said, _varint(100_000, 4)))


def _bombs(folder: Path) -> dict[str, str]:
    """Write files of kilobytes that unpack to 60 MB and more, and one of 10 million nothings; returns name → the reason."""

    def write(name: str, columns: dict[str, Any], **options: Any) -> None:
        options = {"compression": "zstd", "store_schema": False, "write_statistics": False, **options}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", **options)

    pictures = [encoded()] * 60
    write("repeated", {"image": pa.StructArray.from_arrays([_again(bytes(1_000_000), 200)], ["bytes"])})
    write("text", {"image": pictures, "prompt": _again("x" * 1_000_000, 60)})
    write("large", {"image": pictures[:1], "prompt": ["x" * 60_000_000]}, use_dictionary=False)
    write("many", {"image": pa.nulls(10_000_000, pa.binary())})
    write("lying", {"image": [bytes(60_000_000)]}, use_dictionary=False)
    _lie(folder / "lying.parquet")
    write("delta", {"image": [bytes(1_000_000)] * 60}, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    write("ids", {"image": pictures, "id": pa.array([bytes(1_000_000)] * 60, pa.binary(1_000_000))})
    return {
        "repeated": "not an image of a known format",
        "text": "a text is larger than 64 KiB, which no prompt is",
        "large": "column 'prompt' would unpack from",
        "many": "it claims 10,000,000 values in",
        "lying": "column 'image' would unpack from",
        "delta": "column 'image' is stored as DELTA_BYTE_ARRAY",
        "ids": "column 'id' has up to 60 values of 1,000,000 bytes in",
    }


def test_small_parquet_files_that_unpack_to_gigabytes_take_no_memory(tmp_path: Path) -> None:
    """The limit is a sixteenth of what it is elsewhere, and so are the files."""
    bombs = _bombs(tmp_path)
    listing_and_reading = """
import resource, sys
from pathlib import Path
from cpo_ray.data.picture import PictureError, decode
from cpo_ray.data.sources import table
from cpo_ray.data.sources.extent import read
from cpo_ray.data.sources.folder import read_pictures
table.MOST_UNPACKED //= 16
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    found = read_pictures(Path(sys.argv[1], name + ".parquet"))
    reasons = {one.reason for one in found.set_aside}
    for data in read(one.extent for one in found.pictures[:1]):
        try:
            decode(data) if isinstance(data, bytes) else reasons.add(str(data))
        except PictureError as error:
            reasons.add(str(error))
    print(*reasons)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    command = [sys.executable, "-c", listing_and_reading, str(tmp_path), *bombs]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600)
    *said, taken = answer.stdout.splitlines()
    assert len(said) == len(bombs), answer.stderr
    assert [each for each, reason in zip(said, bombs.values(), strict=True) if reason not in each] == []
    assert int(taken) < 50, "MiB"


def test_a_pipe_in_the_place_of_a_listed_picture_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    listing = listed(tmp_path)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    assert "is no plain file any more" in reasons(listing)["a.png"]
    with pytest.raises(DataError, match=r"a\.png is neither a picture nor a Parquet file nor a tar"):
        listed(tmp_path / "a.png")


# ---- tars


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def test_a_webdataset_tar_is_read_without_unpickling_or_unpacking_anything(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    members = [
        ("0001.jpg", encoded("jpeg")),
        ("0001.json", json.dumps({"caption": "a house", "prompt": 3, "url": "https://example.org"}).encode()),
        ("0001.pkl", pickle.dumps(Bomb(trace))),
        ("sub/0002.png", encoded()),
        ("sub/0002.txt", b"a field\n"),
        ("0003.left.png", encoded()),
        ("0003.right.png", encoded(size=(32, 32))),
        ("../../0004.png", encoded()),
        ("/0005.png", encoded()),
        ("0008.png", b"no picture"),
        ("0006.txt", b"a caption without a picture"),
    ]
    tar_of(tmp_path / "part.tar", members)
    with tarfile.open(tmp_path / "part.tar", "a") as tar:
        link = tarfile.TarInfo("0007.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    listing = listed(tmp_path / "part.tar")
    prompts = {entry.id: entry.prompt for entry in listing.entries}
    assert prompts == {
        "part.tar/0001": "a house",
        "part.tar/sub/0002": "a field",
        "part.tar/0003.left.png": "",
        "part.tar/0003.right.png": "",
        "part.tar/0008": "",
    }
    found = reasons(listing)
    assert [name for name, reason in found.items() if reason] == ["part.tar/0008"]
    contents = dict(members)
    names = ("0001.jpg", "sub/0002.png", "0003.left.png", "0003.right.png", "0008.png")
    assert list(read(entry.extent for entry in listing.entries)) == [contents[name] for name in names]
    assert sorted((one.source, one.kind) for one in listing.set_aside) == [
        ("part.tar", "no picture"),
        ("part.tar:../../0004.png", "path leaves the folder"),
        ("part.tar:/0005.png", "path leaves the folder"),
        ("part.tar:0006.txt", "no picture"),
        ("part.tar:0007.png", "unreadable file"),
    ]
    assert "1 members with suffix '.pkl' are not read" in {one.reason for one in listing.set_aside}
    assert not trace.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["part.tar"]


def test_a_damaged_tar_gives_what_comes_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "part.tar"
    tar_of(path, [(f"{number}.png", encoded()) for number in range(3)])
    whole = path.read_bytes()
    third = listed(path).entries[2].extent
    # In the header of the third, in its bytes, and in its place something else.
    header = third.start - 512
    for damaged, kept in (
        (whole[:header] + b"\xff" * 512 + whole[third.start :], 2),
        (whole[: header + 100], 2),
        (whole[: third.start + 10], 3),
    ):
        path.write_bytes(damaged)
        listing = listed(path)
        assert len(listing.entries) == kept, kept
        problems = [s.reason for s in listing.set_aside] + [reason for reason in reasons(listing).values() if reason]
        assert problems and ("part.tar is damaged" in problems[0] or "ends after" in problems[0])


def test_a_compressed_tar_says_so(tmp_path: Path) -> None:
    (tmp_path / "part.tar.gz").write_bytes(b"x")
    listing = listed(tmp_path)
    assert "unpack it to a folder or a plain .tar" in listing.set_aside[0].reason


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing at"):
        listed(tmp_path / "none")

"""Pictures, annotated shards and the import, with real files; one case for each kind of bad row."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from cpo_ray.core.files import DiskFullError
from cpo_ray.core.picture_size import PictureSize
from cpo_ray.core.prompts import Labels
from cpo_ray.core.schema import ANNOTATED, QUARANTINE
from cpo_ray.core.splits import Split, split_of
from cpo_ray.data.importer import ImportReport, import_folder
from cpo_ray.data.picture import MAX_BYTES, PictureError, decode, fit
from cpo_ray.data.shards import AnnotatedDataset, DataError, stage_shards, staged, write_shards
from cpo_ray.hierarchy import Hierarchy, load_hierarchy


@pytest.fixture(scope="module")
def toy() -> Hierarchy:
    return load_hierarchy(Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml")


def encoded(picture: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def color(data: bytes) -> tuple[int, ...]:
    picture = decode(data)
    assert picture.mode == "RGB"
    return tuple(np.asarray(picture).reshape(-1, 3)[0].tolist())


# ---- pictures


def test_every_mode_becomes_rgb() -> None:
    square = (16, 16)
    assert color(encoded(Image.new("L", square, 100))) == (100, 100, 100)
    assert color(encoded(Image.new("1", square, 1))) == (255, 255, 255)
    assert color(encoded(Image.new("I;16", square, 0x8001))) == (128, 128, 128)
    assert color(encoded(Image.new("CMYK", square, (0, 255, 255, 0)), "tiff")) == (255, 0, 0)
    # Half of black over white is grey.
    assert color(encoded(Image.new("RGBA", square, (0, 0, 0, 128)))) == (127, 127, 127)
    assert color(encoded(Image.new("LA", square, (0, 0)))) == (255, 255, 255)
    assert color(encoded(Image.new("P", square, 0), "png", transparency=0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_large_transparent_picture_is_put_on_white_piece_by_piece(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(3, 50).convert("RGBA")
    pixels.putalpha(noise(4, 50).convert("L"))
    data = encoded(pixels.quantize(30) if mode == "P" else pixels.convert(mode))
    whole = np.asarray(decode(data))
    monkeypatch.setattr("cpo_ray.data.picture._STRIP", 50 * 7)
    np.testing.assert_array_equal(np.asarray(decode(data)), whole)


def test_a_colour_profile_of_over_a_megabyte_is_read() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    large = (len(profile) + 3 * 2**20).to_bytes(4, "big") + profile[4:] + bytes(3 * 2**20)
    assert color(encoded(Image.new("RGB", (16, 16), (10, 20, 30)), icc_profile=large)) == (10, 20, 30)


def test_exif_rotation_is_applied() -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    upright = np.asarray(decode(encoded(Image.fromarray(pixels), "png", exif=exif)))
    assert upright.shape == (40, 20, 3)
    assert upright[:20].min() == 255 and upright[20:].max() == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not an image of a known format"),
        (encoded(noise(0, 64))[:-2000], "damaged or truncated"),
        (encoded(noise(0, 64), "jpeg")[:-500], "damaged or truncated"),
        (encoded(Image.new("RGB", (15, 400))), "15 x 400 pixels; 16 on each side"),
        (encoded(Image.new("1", (40_000, 5_000))), "more than 100 megapixels"),
        (encoded(Image.new("F", (16, 16)), "tiff"), "32 bits per channel"),
        (bytes(MAX_BYTES + 1), "larger than 64 MiB"),
        (encoded(Image.new("1", (8_000, 8_000))), r"bytes would unpack to 8000 x 8000 pixels, as no photograph does"),
    ],
)
def test_unusable_pictures_say_why(data: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        decode(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels_is_ours_and_not_that_of_the_library() -> None:
    with pytest.raises(PictureError, match="12000 x 9000 pixels; 100 megapixels"):
        decode(encoded(Image.new("1", (12_000, 9_000))))


def test_fit_crops_the_centre_and_keeps_the_sizes() -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = np.asarray(noise(1, 32))
    square, size = fit(Image.fromarray(pixels), (32, 32))
    np.testing.assert_array_equal(square, pixels[:, 16:48])
    assert size == PictureSize(original=(32, 64), crop=(0, 16), target=(32, 32))
    square, size = fit(Image.new("RGB", (100, 300), (10, 200, 30)), (64, 64))
    assert square.shape == (64, 64, 3) and square.dtype == np.uint8
    # Resized to 64 x 192; the middle 64 rows begin at row 64.
    assert size == PictureSize(original=(300, 100), crop=(64, 0), target=(64, 64))
    np.testing.assert_array_equal(square, np.broadcast_to([10, 200, 30], (64, 64, 3)))


@pytest.mark.parametrize(("share", "left", "middle"), [(0.0, 0, 42.7), (0.5, 3, 48.1), (1.0, 5, 51.7)])
def test_fit_crops_where_it_is_told_and_says_so(share: float, left: int, middle: float) -> None:
    """96 x 144 covers 48 x 80 as 53.3 x 80: a column is 1.8 of the picture's, and 5.3 are too many."""
    columns = np.broadcast_to(2 * np.arange(96, dtype=np.uint8)[:, None], (144, 96, 3))
    pixels, size = fit(Image.fromarray(columns), (48, 80), (share, 0.9))
    assert pixels.shape == (80, 48, 3)
    assert size == PictureSize(original=(144, 96), crop=(0, left), target=(80, 48))
    # The crop shows 86.4 columns from 1.8 · left on, or the last ones; the colour is twice the column.
    assert abs(pixels.mean() / 2 - middle) < 0.5


def test_fit_antialiases() -> None:
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    square, _ = fit(Image.fromarray(checks).convert("RGB"), (32, 32))
    assert np.abs(square.astype(int) - 127).max() <= 2


# ---- shards


def row(sample_id: str, image: bytes, **changes: Any) -> dict[str, Any]:
    return {
        "id": sample_id,
        "image": image,
        "prompt": "red circle over sea",
        "positive_ids": ["edge.clarity"],
        "negative_ids": ["color.palette"],
        "width": 16,
        "height": 16,
        "provenance": "by hand",
        "hierarchy_hash": "0123456789abcdef",
        "split": None,
    } | changes


def rows(count: int) -> list[dict[str, Any]]:
    return [row(f"picture-{number:03d}", bytes([number]) * (number + 1)) for number in range(count)]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = rows(50)
    written[7] |= {"prompt": "rötes ○", "positive_ids": [], "negative_ids": [], "width": 640, "height": 480}
    assert write_shards(iter(written), tmp_path / "new", rows_per_shard=16, row_group_size=4) == 50
    files = sorted((tmp_path / "new").iterdir())
    assert [file.name for file in files] == [f"annotated-{number:05d}.parquet" for number in range(4)]
    assert [pq.ParquetFile(file).num_row_groups for file in files] == [4, 4, 4, 1]
    assert all(pq.read_schema(file).equals(ANNOTATED) for file in files)
    data = pickle.loads(pickle.dumps(AnnotatedDataset.open(tmp_path / "new")))
    assert data.ids == tuple(r["id"] for r in written)
    assert data.labels("picture-000") == Labels("red circle over sea", ("edge.clarity",), ("color.palette",))
    assert data.labels("picture-007") == Labels("rötes ○", (), ())
    assert data.size("picture-007") == (640, 480)
    assert data.images(data.ids) == [r["image"] for r in written]
    some = np.random.default_rng(0).choice(50, 30).tolist()
    assert data.images([written[number]["id"] for number in some]) == [written[number]["image"] for number in some]
    with pytest.raises(DataError, match=r"2 ids, such as 'x', are not among the 50"):
        data.images(["picture-001", "x", "y"])


def test_splits_depend_on_the_id_alone(tmp_path: Path) -> None:
    write_shards(rows(200), tmp_path / "all")
    write_shards(rows(200)[50:], tmp_path / "later")
    data, later = AnnotatedDataset.open(tmp_path / "all"), AnnotatedDataset.open(tmp_path / "later")
    splits = {name: data.split(name) for name in get_args(Split)}
    assert sorted(sum(splits.values(), ())) == sorted(data.ids)
    assert 140 < len(splits["train"]) < 180
    for name, ids in splits.items():
        assert later.split(name) == tuple(sample_id for sample_id in ids if sample_id in set(later.ids))
        assert all(split_of(sample_id) == name for sample_id in ids)


def test_a_published_split_is_kept_and_older_shards_have_none(tmp_path: Path) -> None:
    taken: tuple[Split, ...] = ("test", "train", "validation")
    content = [each | {"split": split} for each, split in zip(rows(3), taken, strict=True)] + rows(40)[3:]
    write_shards(content, tmp_path / "new")
    data = AnnotatedDataset.open(tmp_path / "new")
    for split, name in zip(taken, data.ids, strict=False):
        assert name in data.split(split)
    others = data.ids[3:]
    assert all(name in data.split(split_of(name)) for name in others) and data.published.keys().isdisjoint(others)
    (tmp_path / "old").mkdir()
    shard = tmp_path / "new" / "annotated-00000.parquet"
    pq.write_table(pq.read_table(shard).drop_columns("split"), tmp_path / "old" / shard.name)
    old = AnnotatedDataset.open(tmp_path / "old")
    assert not old.published and old.fingerprint == data.fingerprint
    write_shards([row("x", b"x", split="dev")], tmp_path / "wrong")
    with pytest.raises(DataError, match=r"the split of 'x' in .* is 'dev' and none of train, validation, test; import again"):
        AnnotatedDataset.open(tmp_path / "wrong")


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    def fingerprint(name: str, content: list[dict[str, Any]], per_shard: int = 512) -> str:
        write_shards(content, tmp_path / name, rows_per_shard=per_shard)
        return AnnotatedDataset.open(tmp_path / name).fingerprint

    first = fingerprint("first", rows(40))
    assert fingerprint("other shards and order", rows(40)[::-1], per_shard=16) == first
    changes: list[dict[str, Any]] = [{"id": "x"}, {"image": b"x"}, {"prompt": "x"}, {"positive_ids": []}, {"negative_ids": []}]
    changed = [fingerprint(str(number), [rows(40)[0] | change, *rows(40)[1:]]) for number, change in enumerate(changes)]
    swapped = [rows(2)[0] | {"image": rows(2)[1]["image"]}, rows(2)[1] | {"image": rows(2)[0]["image"]}]
    assert len({first, *changed, fingerprint("plain", rows(2)), fingerprint("swapped", swapped)}) == 8


def test_unusable_folders_say_why(tmp_path: Path, toy: Hierarchy) -> None:
    def problem(name: str) -> str:
        with pytest.raises(DataError) as caught:
            AnnotatedDataset.open(tmp_path / name)
        return str(caught.value)

    assert problem("none").startswith(f"there is no folder {tmp_path / 'none'}")
    (tmp_path / "bare").mkdir()
    assert "no annotated shards" in problem("bare")
    (tmp_path / "empty").mkdir()
    pq.write_table(ANNOTATED.empty_table(), tmp_path / "empty" / "annotated-00000.parquet")
    assert "hold no pictures" in problem("empty")
    write_shards(rows(20) + rows(1), tmp_path / "twice", rows_per_shard=16)
    assert "id 'picture-000'" in problem("twice") and "annotated-00001.parquet" in problem("twice")
    write_shards([*rows(2), row("x", b"x", hierarchy_hash="f" * 16)], tmp_path / "mixed")
    assert "annotated with 2 different hierarchies" in problem("mixed")
    write_shards(rows(40), tmp_path / "cut", rows_per_shard=16)
    shard = tmp_path / "cut" / "annotated-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert problem("cut").startswith(f"{shard} cannot be read as Parquet")
    (tmp_path / "cut" / "annotated-00000.parquet").unlink()
    assert "annotated-00000.parquet is missing, so an import was interrupted" in problem("cut")
    write_shards(rows(3), tmp_path / "good")
    data = AnnotatedDataset.open(tmp_path / "good")
    with pytest.raises(DataError, match="annotated with hierarchy 0123456789abcdef and not with 'painting-toy'"):
        data.check_hierarchy(toy)


def test_the_column_that_is_wrong_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(2), schema=ANNOTATED)
    nullable = table.cast(pa.schema([field.with_nullable(True) for field in ANNOTATED]))
    cases = {
        "has no column 'prompt'; annotated shards have id, image": table.drop_columns("prompt"),
        "column 'width' of .* is required string, expected required int32": table.set_column(
            5, pa.field("width", pa.string(), nullable=False), pa.array(["16", "16"])
        ),
        "column 'id' of .* is nullable string, expected required string": nullable,
    }
    for number, (message, wrong) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        pq.write_table(wrong, folder / "annotated-00000.parquet")
        with pytest.raises(DataError, match=message):
            AnnotatedDataset.open(folder)
    (tmp_path / "more").mkdir()
    pq.write_table(table.append_column("remark", pa.array(["a", "b"])), tmp_path / "more" / "annotated-00000.parquet")
    assert len(AnnotatedDataset.open(tmp_path / "more").ids) == 2


def test_a_half_written_file_is_never_read(tmp_path: Path) -> None:
    def breaks_off() -> Any:
        yield from rows(20)
        assert list(tmp_path.glob(".annotated-00000.parquet.partial"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(breaks_off(), tmp_path, rows_per_shard=16)
    assert list(tmp_path.iterdir()) == []
    # A killed process cleans nothing up: what it leaves is not taken for a shard, neither by a reader nor by the next writer.
    (tmp_path / ".annotated-00000.parquet.partial").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="no annotated shards"):
        AnnotatedDataset.open(tmp_path)
    write_shards(rows(3), tmp_path)
    assert AnnotatedDataset.open(tmp_path).ids == tuple(r["id"] for r in rows(3))
    assert len(list(tmp_path.iterdir())) == 1


def test_shards_are_never_written_over(tmp_path: Path) -> None:
    write_shards(rows(3), tmp_path)
    with pytest.raises(DataError, match="already holds annotated shards"):
        write_shards(rows(4), tmp_path)
    assert len(AnnotatedDataset.open(tmp_path).ids) == 3


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    # /dev/full answers every write with the error of a full disk.
    with pytest.raises(DiskFullError, match=r"the disk of .* is full; free some space"), staged(tmp_path) as stage:
        (tmp_path / ".annotated-00001.parquet.partial").symlink_to("/dev/full")
        stage_shards(rows(20), stage, rows_per_shard=16)
    assert list(tmp_path.iterdir()) == []


# ---- import

GOOD = {"prompt": "red circle over sea", "positive": ["light.modelling", "edge.clarity"], "negative": ["color.palette"]}


def imported(tmp_path: Path, tree: Hierarchy, *lines: dict[str, Any] | bytes) -> tuple[ImportReport, list[dict[str, str]]]:
    """Import a folder with one good picture, good.png; the report and the rows of the quarantine."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "good.png").write_bytes(encoded(noise(0, 20)))
    text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    (folder / "metadata.jsonl").write_bytes(text)
    report = import_folder(folder, tmp_path / "shards", tree)
    table = pq.read_table(tmp_path / "shards" / "quarantine.parquet")
    assert table.schema.equals(QUARANTINE)
    readable = (tmp_path / "shards" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in readable] == table.to_pylist()
    assert report.set_aside == table.num_rows
    return report, table.to_pylist()


def test_import_keeps_the_good_rows(tmp_path: Path, toy: Hierarchy) -> None:
    text = {key: value for key, value in GOOD.items() if key != "prompt"} | {"text": " blue square over sea\n", "id": "named"}
    report, _ = imported(tmp_path, toy, {"file_name": "good.png", **GOOD}, b"", {"file_name": "./good.png", **text})
    assert report == ImportReport(2, 0, Counter(), "prompts: 1 from 'prompt', 1 from 'text'", splits=Counter({None: 2}))
    assert report.summary() == "2 pictures imported, none set aside\nprompts: 1 from 'prompt', 1 from 'text'"
    data = AnnotatedDataset.open(tmp_path / "shards")
    data.check_hierarchy(toy)
    assert data.ids == ("good.png", "named")
    assert data.labels("good.png") == Labels("red circle over sea", ("edge.clarity", "light.modelling"), ("color.palette",))
    assert data.labels("named").prompt == "blue square over sea"
    assert data.size("named") == (20, 20)
    assert data.images(["named"]) == [(tmp_path / "pictures" / "good.png").read_bytes()]
    provenance = pq.read_table(tmp_path / "shards" / "annotated-00000.parquet")["provenance"].to_pylist()
    assert provenance == ["pictures/metadata.jsonl:1", "pictures/metadata.jsonl:3"]


PICTURE = {"file_name": "good.png", "id": "bad", **GOOD}


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b'{"file_name": "good.png",', "broken line", "the line is not valid JSON"),
        (b"\xff\xfe\xfa", "broken line", "the line is not valid JSON"),
        (b"[" * 100_000, "broken line", "the line is not valid JSON"),
        (b"[1]", "broken line", "the line is not a JSON object"),
        ({**GOOD, "id": "bad"}, "missing or wrong field", "file_name: missing or not a text"),
        ({"file_name": "good.png", "id": 3, "positive": []}, "missing or wrong field", "prompt and id: missing or not a text"),
        ({**PICTURE, "positive": "edge.clarity"}, "missing or wrong field", "'positive' is missing or not a list"),
        ({"file_name": "good.png", "prompt": "red circle", "positive": []}, "missing or wrong field", "'negative' is missing"),
        ({**PICTURE, "file_name": "none.png"}, "unreadable file", "there is no picture 'none.png' beside metadata.jsonl"),
        ({**PICTURE, "file_name": "."}, "unreadable file", "there is no picture '.' beside metadata.jsonl"),
        ({**PICTURE, "file_name": "a\0b"}, "unreadable file", "there is no picture 'a\\x00b' beside metadata.jsonl"),
        ({**PICTURE, "file_name": "../pictures.txt"}, "path leaves the folder", "'../pictures.txt' leaves the folder"),
        ({**PICTURE, "file_name": "/dev/zero"}, "path leaves the folder", "'/dev/zero' leaves the folder"),
        ({**PICTURE, "id": "first"}, "duplicate id", "the id 'first' is that of pictures/metadata.jsonl:1 already"),
        ({**PICTURE, "id": " "}, "empty id", "the id is empty"),
        ({**PICTURE, "prompt": " \n"}, "empty prompt", "the prompt is empty"),
        ({**PICTURE, "prompt": "red circle over sea \ud800"}, "broken prompt", "is not valid Unicode"),
        ({**PICTURE, "file_name": "metadata.jsonl"}, "unreadable file", "there is no picture 'metadata.jsonl'"),
        ({**PICTURE, "positive": ["edge.clarty"]}, "impossible labels", "no attribute 'edge.clarty'"),
        ({**PICTURE, "positive": ["color.palette"]}, "impossible labels", "'color.palette' is both positive and negative."),
        ({**PICTURE, "negative": ["color.palette", "light.contrast"]}, "impossible labels", "exclude each other."),
        ({**PICTURE, "prompt": "red circle on grey wall", "positive": ["space.horizon"]}, "impossible labels", "does not apply"),
    ],
)
def test_a_bad_row_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path, toy: Hierarchy, line: dict[str, Any] | bytes, kind: str, reason: str
) -> None:
    first, last = ({"file_name": "good.png", "id": name, **GOOD} for name in ("first", "last"))
    report, quarantine = imported(tmp_path, toy, first, line, last)
    assert AnnotatedDataset.open(tmp_path / "shards").ids == ("first", "last")
    assert (report.kept, report.set_aside, report.reasons) == (2, 1, Counter([kind]))
    assert report.summary().startswith(f"2 pictures imported, 1 set aside ({kind}: 1)")
    assert quarantine[0]["source"] == "pictures/metadata.jsonl:2"
    assert reason in quarantine[0]["reason"]
    if isinstance(line, dict) and "id" in line:
        assert quarantine[0]["id"] == str(line["id"])


def test_all_reasons_of_a_row_are_given(tmp_path: Path, toy: Hierarchy) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "good.png").write_bytes(encoded(noise(0, 20)))
    bad = {"file_name": "bad.png", "prompt": "", "positive": ["x", "y"], "negative": []}
    lines = "\n".join(json.dumps(line) for line in (bad, {"file_name": "good.png", **GOOD}))
    (tmp_path / "pictures" / "metadata.jsonl").write_text(lines)
    report = import_folder(tmp_path / "pictures", tmp_path / "shards", toy)
    assert (report.kept, report.reasons) == (1, Counter(["empty prompt", "impossible labels", "unusable picture"]))
    (quarantined,) = pq.read_table(tmp_path / "shards" / "quarantine.parquet").to_pylist()
    assert quarantined["reason"].count(";") == 3


def test_a_full_disk_at_the_quarantine_keeps_no_shards_either(tmp_path: Path, toy: Hierarchy) -> None:
    output = tmp_path / "shards"
    output.mkdir()
    (output / ".quarantine.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="is full"):
        imported(tmp_path, toy, {"file_name": "good.png", **GOOD}, b"{")
    assert list(output.iterdir()) == []


CASES = Path(__file__).parents[1] / "support" / "cases"


@pytest.mark.parametrize("profile", ["adobe", "p3"])
def test_a_colour_profile_is_converted(profile: str) -> None:
    """Both were saved from the sRGB colour (60, 160, 60), in Adobe RGB and in Display P3."""
    found = np.asarray(decode((CASES / "20-icc-wide-gamut" / f"green_{profile}.jpg").read_bytes())).reshape(-1, 3).mean(axis=0)
    assert np.abs(found - (60, 160, 60)).max() < 4


@pytest.mark.parametrize("name", ["cut_ifd", "orient_text", "rotated_and_odd_tag"])
def test_odd_exif_ends_no_import(name: str) -> None:
    picture = decode((CASES / "22-exif-broken" / f"{name}.jpg").read_bytes())
    # What can be read of it is honoured: the red channel of these grows along one side, and the rotation turns it.
    columns = np.asarray(picture)[..., 0].astype(int)
    turned = abs(columns[0].mean() - columns[-1].mean()) > abs(columns[:, 0].mean() - columns[:, -1].mean())
    assert turned == (name in ("cut_ifd", "rotated_and_odd_tag"))


@pytest.mark.parametrize("chunk", [b"zTXt", b"iTXt", b"tEXt"])
def test_a_long_text_in_a_picture_does_not_matter(chunk: bytes) -> None:
    plain = encoded(noise(3))
    body = b"workflow\0" + (b"\0" if chunk == b"zTXt" else b"") + zlib.compress(b"x" * 3_000_000)
    text = struct.pack(">I", len(body)) + chunk + body + struct.pack(">I", zlib.crc32(chunk + body))
    head = plain.index(b"IDAT") - 4
    assert np.array_equal(np.asarray(decode(plain[:head] + text + plain[head:])), np.asarray(decode(plain)))

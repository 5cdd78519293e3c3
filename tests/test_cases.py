"""What people bring, from public reports: a table of inputs, each with what the user reads or gets.

A row is the name of the case, what tries it in an empty folder and returns what is said, and a pattern of that. Add rows for what
you mend; small inputs lie in `support/cases`, the others are made here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.mixed_folder import encoded

from cpo_ray.config import ConfigError, dump, load
from cpo_ray.core.prompts import Labels
from cpo_ray.data.importer import import_folder
from cpo_ray.data.picture import decode
from cpo_ray.data.shards import AnnotatedDataset, DataError, write_shards
from cpo_ray.data.validate import Origin, annotated_row
from cpo_ray.hierarchy import HierarchyError, load_hierarchy
from cpo_ray.preflight.checks import check

ROOT = Path(__file__).parents[1]
INPUTS = Path(__file__).parent / "support" / "cases"
TREE, TOY = ROOT / "hierarchy" / "painting_toy.yaml", ROOT / "jobs" / "configs" / "toy.toml"

Tried = Callable[[Path], str]


def imported(folder: str | Callable[[Path], None], *, shards: Path | None = None) -> Tried:
    """Import one of the small inputs, or what a function writes into a folder: the summary, and each row that is kept."""

    def tried(place: Path) -> str:
        source = place / "pictures"
        if isinstance(folder, str):
            shutil.copytree(INPUTS / folder, source)
        else:
            source.mkdir()
            folder(source)
        try:
            said = import_folder(source, place / "shards", load_hierarchy(TREE)).summary()
        except DataError as error:
            return str(error)
        data = AnnotatedDataset.open(place / "shards")
        rows = [f"{name}: {data.labels(name).prompt}, {data.published.get(name)}" for name in data.ids]
        return "\n".join([said, *rows])

    return tried


def metadata(name: str, content: bytes | str, pictures: tuple[str, ...] = ("a.png",)) -> Tried:
    """Import pictures with a metadata file."""

    def write(folder: Path) -> None:
        for picture in pictures:
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            (folder / picture).write_bytes(encoded())
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return imported(write)


def read(change: Callable[[str], str | bytes], *overrides: str) -> Tried:
    """Load the toy configuration, changed and encoded: its folders and its name, or the error."""

    def tried(place: Path) -> str:
        file = place / "my.toml"
        content = change(TOY.read_text(encoding="utf-8"))
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            config = load(file, overrides)
        except ConfigError as error:
            return str(error)
        file.write_text(dump(config), encoding="utf-8")
        assert load(file) == config, "what a run writes down is what it has read"
        return f"data in {config.data.folder}, runs in {config.run.output}, name {config.run.name}"

    return tried


def piped(place: Path) -> str:
    """Load a configuration from a pipe that nobody writes to."""
    os.mkfifo(place / "my.toml")
    with pytest.raises(ConfigError) as told:
        load(place / "my.toml")
    return str(told.value)


def folder(written: str) -> Callable[[str], str]:
    """Another folder of data in the configuration, as written in TOML."""
    return lambda text: re.sub(r'^folder = "runs/data/toy"', lambda _: f"folder = {written}", text, flags=re.MULTILINE)


def tree(encoding: str) -> Tried:
    """Load a tree that holds Cyrillic letters in some encoding."""

    def tried(place: Path) -> str:
        text = TREE.read_text(encoding="utf-8").replace("name: painting-toy", "name: картины")
        (place / "tree.yaml").write_bytes(text.encode(encoding))
        try:
            return load_hierarchy(place / "tree.yaml").name
        except HierarchyError as error:
            return str(error)

    return tried


def colour(name: str) -> Tried:
    """The mean colour of a picture, or where its red grows: along its columns or its rows."""

    def tried(_: Path) -> str:
        pixels = np.asarray(decode((INPUTS / name).read_bytes())).astype(int)
        if name.startswith("20"):
            return str([round(channel) for channel in pixels.reshape(-1, 3).mean(axis=0)])
        across, down = (abs(line[0].mean() - line[-1].mean()) for line in (pixels[..., 0].T, pixels[..., 0]))
        return f"{pixels.shape}, {'down' if down > across else 'across'}"

    return tried


def command(*arguments: str, **environment: str) -> Tried:
    """Run a job in another environment; PLACE in an argument or a variable is the empty folder."""

    def tried(place: Path) -> str:
        given = {name: value.replace("PLACE", str(place)) for name, value in environment.items()}
        line = [sys.executable, *(each.replace("PLACE", str(place)) for each in arguments)]
        answer = subprocess.run(line, cwd=ROOT, env={**os.environ, **given}, capture_output=True, timeout=240)
        said = (answer.stdout + answer.stderr).decode("utf-8", "backslashreplace")
        assert "Traceback" not in said, said
        return f"exit {answer.returncode}: {said}"

    return tried


def _pipe(folder: Path) -> None:
    (folder / "b.png").write_bytes(encoded())
    (folder / "b.txt").write_text("a house")
    os.mkfifo(folder / "a.png")
    (folder / "c.png").symlink_to("/dev/zero")


CHECK = ("jobs/train_sft.py", "--check", "run.output=PLACE", "data.folder=PLACE/data", "expert.optimization.cpus_per_worker=0.2")


def texts(prompts: list[str]) -> Tried:
    """What `--check` says of the texts of some pictures, counted by the embedded base's tokenizers."""

    def tried(place: Path) -> str:
        rows = [
            annotated_row(str(number), encoded(), Labels(prompt, ("edge.clarity",), ()), Origin("by hand"), load_hierarchy(TREE))
            for number, prompt in enumerate(prompts)
        ]
        write_shards(rows, place)
        findings = check(load(TOY, [f"data.folder={place}", "domain.pictures=0", f"data.hierarchy={TREE}"]))
        (finding,) = (each for each in findings if each.sentence.startswith("texts: "))
        return f"{finding.sentence}{', printed at the start' if finding.planned else ''}"

    return tried


ONE = '{{"file_name": {0}, "prompt": "a red square"}}'

CASES: dict[str, tuple[Tried, str]] = {
    "01 captions in text files": (imported("01-caption-txt-sidecars"), r"2 pictures imported.*000\.png: a red square on a table"),
    "02 folder of a split": (
        imported("02-imagefolder-train-split"),
        r"2 pictures imported.*published splits are kept: train 2; there are no validation and no test.*000\.png: .*, train",
    ),
    "05 paths of Windows, CRLF": (imported("05-windows-backslash"), r"1 pictures imported, none set aside.*sub/000\.png"),
    "05 nothing kept": (
        metadata("metadata.jsonl", ONE.format('"no.png"')),
        r"^no picture of .* could be kept.*no picture 'no\.png'",
    ),
    "05 nothing kept is an exit code": (
        command("jobs/import_data.py", "--images", "PLACE", "data.folder=PLACE/shards"),
        r"^exit 1: \S+ holds no pictures; give the folder that does\n$",
    ),
    "08 one JSON array": (imported("08-json-array"), r"3 pictures imported, none set aside"),
    "08 a broken JSON array": (
        metadata("metadata.jsonl", '[\n{"file_name": "a.png"'),
        r"metadata\.jsonl: the file is not valid JSON",
    ),
    "12 other columns": (imported("12-caption-key"), r"2 pictures imported.*prompts: 1 from 'caption', 1 from 'text'"),
    "12 a column that nobody reads": (metadata("metadata.csv", "file_name,promt\na.png,x\n"), r"prompt: missing or not a text$"),
    "no words about a picture": (
        metadata("notes.csv", "x"),
        r"a\.png: prompt: missing or not a text; nothing describes this picture$",
    ),
    "12 a comma in a table without quotes": (
        metadata("metadata.csv", "file_name,prompt\na.png,red, square\n"),
        r"more cells than the header; put texts that hold ',' in double quotes",
    ),
    "names in capitals and without suffix": (
        metadata("METADATA.JSONL", ONE.format('"A"'), ("a.PNG", "sub/b")),
        r"1 pictures imported, 1 set aside.*prompts: 1 from 'prompt'.*a\.PNG: a red square",
    ),
    "UTF-16 metadata": (metadata("metadata.jsonl", ONE.format('"a.png"').encode("utf-16")), r"1 pictures imported"),
    "a pipe and a device with the names of pictures": (
        imported(_pipe),
        r"1 pictures imported, 2 set aside \(unreadable file: 2\).*b\.png: a house",
    ),
    "20 Adobe RGB": (colour("20-icc-wide-gamut/green_adobe.jpg"), r"\[6\d, 160, 6\d\]"),
    "20 Display P3": (colour("20-icc-wide-gamut/green_p3.jpg"), r"\[6\d, 160, 6\d\]"),
    "22 no header": (colour("22-exif-broken/badheader.jpg"), "across"),
    "22 cut": (colour("22-exif-broken/cut_ifd.jpg"), "down"),
    "22 orientation as text": (colour("22-exif-broken/orient_text.jpg"), "across"),
    "22 orientation 0": (colour("22-exif-broken/orient_zero.jpg"), "across"),
    "22 rotated, odd tag": (colour("22-exif-broken/rotated_and_odd_tag.jpg"), "down"),
    "22 rotated, signed": (colour("22-exif-broken/rotated_signed.jpg"), "down"),
    "22 short": (colour("22-exif-broken/short.jpg"), "across"),
    "23 3 MB of iTXt": (colour("23-png-large-text/itxt3mb.png"), r"^\("),
    "23 3 MB of zTXt": (colour("23-png-large-text/ztxt3mb.png"), r"^\("),
    "texts that fit": (texts(["red circle over sea"] * 3), r"^texts: the texts of 3 pictures fit into \d+ tokens$"),
    "a Chinese prompt of 140 tokens": (
        texts(["一只红色的狐狸坐在雪地里" * 6, "red circle"]),
        r"1 prompts lose their end, \d+ tokens on average; attributes keep 33% of the room.*, printed at the start$",
    ),
    "a caption of a vision model": (
        texts([" ".join(["red circle over sea"] * 40)]),
        r"1 prompts lose their end, \d+ tokens on average; attributes keep 33%",
    ),
    "31 byte-order mark": (read(lambda text: text.encode("utf-8-sig")), "data in runs/data/toy"),
    "31 UTF-16": (read(lambda text: text.encode("utf-16")), "data in runs/data/toy"),
    "31 UTF-16 without a mark": (read(lambda text: text.encode("utf-16-le")), r"my\.toml looks like UTF-16 without the mark"),
    "31 cp1252": (
        read(lambda text: folder('"Gemälde"')(text).encode("cp1252")),
        r"^\S+my\.toml, line \d+: byte 0xe4 is not UTF-8; save the file as UTF-8$",
    ),
    "31 CRLF": (read(lambda text: text.replace("\n", "\r\n")), "data in runs/data/toy"),
    "31 backslashes": (
        read(folder(r'"C:\Users\new"')),
        r"not valid TOML.*at line 15.*; write a path of Windows with / or in single",
    ),
    "31 home": (read(folder('"~/pictures"')), rf"data in {Path.home()}/pictures"),
    "31 home in an override": (read(str, "run.output=~/runs"), rf"runs in {Path.home()}/runs"),
    "31 nobody's home": (read(folder('"~nobody-here/a"')), r"'data\.folder'.*nobody knows the home folder in ~nobody-here/a"),
    "31 letters of any script": (read(folder('"данные/картины 🎨"')), "data in данные/картины 🎨"),
    "31 twice": (read(lambda text: text + "\n[run]\nname = 'x'\n"), r"^\S+my\.toml is not valid TOML: Cannot declare"),
    "31 empty": (read(lambda _: ""), r"'run' is missing; add it to the file"),
    "31 YAML": (read(lambda _: "run:\n  name: toy\n"), r"^\S+my\.toml is not valid TOML: [^\n]*$"),
    "31 nested for ever": (read(lambda text: text + "\n[lost]\nx = " + "[" * 5000), "its values are nested too deeply"),
    "31 a long number": (read(lambda text: text + "\n[lost]\nx = " + "9" * 5000), r"not valid TOML: Exceeds the limit [^\n]*$"),
    "31 a long number in an override": (read(str, f"run.seed={'9' * 5000}"), r"'run\.seed' is '9+'"),
    "31 a folder": (command("jobs/train_sft.py", "--config", "jobs"), r"^exit 2: jobs cannot be read: Is a directory[^\n]*\n$"),
    "31 a pipe": (piped, r"^\S+my\.toml cannot be read: it is no plain file; give a configuration in TOML$"),
    "31 a date as a name": (
        read(str, "run.name=2024-05-01"),
        r"a date, and a text is expected; put it in quotes: run\.name = \"2024-",
    ),
    "31 a number as a name": (
        read(lambda text: text.replace('name = "toy" ', "name = 7 ")),
        r"^\S+ 'run\.name' is a int, and a text is expected; put it in quotes: run\.name = \"7\"$",
    ),
    "31 a number as a path": (read(folder("2024")), r"put it in quotes: data\.folder = \"2024\""),
    "a terminal and files in ASCII, no home folder": (
        command(*CHECK, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", HOME="/proc/nobody", HF_HOME=""),
        r"^exit 0: .*hierarchy 'painting-toy'",
    ),
    "31 a tree in UTF-16": (tree("utf-16"), "^картины$"),
    "31 a tree with a mark": (tree("utf-8-sig"), "^картины$"),
    "31 a tree in cp1251": (tree("cp1251"), r"^\S+tree\.yaml, line 3: byte 0x\w\w is not UTF-8; save the file as UTF-8\.$"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_people_bring(name: str, tmp_path: Path) -> None:
    tried, expected = CASES[name]
    said = tried(tmp_path)
    assert re.search(expected, said, re.DOTALL), said

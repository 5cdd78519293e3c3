"""The pages that people read: their commands parse, their settings load, their examples run, their links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cpo_ray import command_line
from cpo_ray.config import Config, Section, load_as
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.config.keys import place
from cpo_ray.config.review import ReviewConfig
from cpo_ray.evaluation.scorers.base import open_scorers
from cpo_ray.hierarchy.__main__ import parser as hierarchy_parser

ROOT = Path(__file__).parents[1]
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", CHANGELOG, *sorted((ROOT / "docs").glob("*.md"))]
#: These hold commands in their comments.
COMMENTED = [*sorted((ROOT / "cluster").iterdir()), *sorted((ROOT / "jobs" / "configs").glob("*.toml"))]
FOLDERS = ("benchmarks", "cluster", "cpo_ray", "docs", "hierarchy", "jobs", "tests", "tune")
#: The file that stands for one of a user's own, by what it is validated against.
COMPLETE: dict[type[Section], str] = {
    Config: "toy_sweep.toml",
    AnnotationConfig: "annotate_endpoint.toml",
    ReviewConfig: "review_toy.toml",
}


class Found(NamedTuple):
    """Something on a page; `where` is its file and line."""

    where: str
    text: str


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands() -> Iterator[Found]:
    """Lines of code, and code in a sentence, that begin as a command of ours does."""
    for path in (*PAGES, *COMMENTED):
        if path == CHANGELOG:  # it names old ones, too
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            spans = re.findall(r"`([^`]+)`", line) if path.suffix == ".md" else []
            for text in (line.lstrip("# "), *spans):
                if re.match(r"(make|python|ray job submit)( |$)", text):
                    yield Found(f"{name_of(path)}:{number}", text.strip())


def blocks(language: str) -> Iterator[Found]:
    """The fenced blocks of a language."""
    for path in PAGES:
        text = path.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield Found(f"{name_of(path)}:{text[: match.start()].count(chr(10)) + 1}", match[1])


def ids(found: Found) -> str:
    return found.where


def check_job(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse as the job itself does, and read its configuration with the overrides, or a complete one in the place of a user's."""
    seen: list[tuple[ArgumentParser, type[Section]]] = []

    def note(line: ArgumentParser, job: object, check: object = None, schema: type[Section] = Config) -> int:
        seen.append((line, schema))
        return 0

    monkeypatch.setattr(command_line, "run", note)
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    ((line, schema),) = seen
    given = line.parse_intermixed_args(arguments)
    path = ROOT / given.config
    load_as(schema, path if path.is_file() else ROOT / "jobs" / "configs" / COMPLETE[schema], given.overrides)


def check_python(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if arguments[0] == "-m":
        module, *rest = arguments[1:]
        if module == "cpo_ray.hierarchy" and rest:
            hierarchy_parser().parse_args(rest)
        else:
            assert importlib.util.find_spec(module) is not None, f"there is no module {module}"
        return
    script = ROOT / arguments[0].removeprefix("/opt/cpo_ray/")
    assert script.is_file(), f"there is no {arguments[0]}"
    if script.parent.name in ("jobs", "tune"):
        check_job(script, arguments[1:], monkeypatch)
    else:
        options = set(re.findall(r'"(--[a-z-]+)"', script.read_text()))
        assert {word for word in arguments if word.startswith("--")} <= options


@pytest.mark.parametrize("command", list(commands()), ids=ids)
def test_a_command_is_one_that_its_parser_takes(
    command: Found, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command.text, comments=True)
    if words[0] == "ray":
        words = words[words.index("--") + 1 :]
    try:
        if words[0] == "make":
            targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
            assert set(words[1:]) <= targets
        elif len(words) > 1 and words[1].startswith(("-m", *(f"{folder}/" for folder in FOLDERS), "/opt/cpo_ray/")):
            check_python(words[1:], monkeypatch)
    except SystemExit:
        pytest.fail(f"{command.where}: {command.text}: {capsys.readouterr().err}")


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the Python examples of all pages, each under the name in its first line, on the path."""
    for found in blocks("python"):
        name = re.match(r"# (\w+\.py)", found.text)
        assert name, f"{found.where}: name the file in the first line, such as # my_scorer.py"
        (tmp_path / name[1]).write_text(found.text)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for module in {path.stem for path in tmp_path.glob("*.py")} - before:
        sys.modules.pop(module, None)


@pytest.mark.parametrize("snippet", list(blocks("toml")), ids=ids)
def test_settings_are_ones_that_a_configuration_takes(snippet: Found, examples: Path) -> None:
    given = tomllib.loads(snippet.text)
    schema = next((kind for kind in (AnnotationConfig, ReviewConfig) if set(given) <= set(kind.model_fields)), Config)
    complete = tomllib.loads((ROOT / "jobs" / "configs" / COMPLETE[schema]).read_text())
    for section, values in given.items():
        # What a snippet shows of a section is laid over the complete one; a table in it takes the place of the old one.
        complete[section] = (complete.get(section, {}) if section != "domain" else {}) | values
    if schema is Config:
        complete["model"].setdefault("base", "my/base")  # where the domain that a snippet names has none of its own
    config = schema.model_validate(complete)
    if isinstance(config, Config):
        open_scorers(config)


def test_examples_in_python_run(examples: Path) -> None:
    for path in sorted(examples.glob("*.py")):
        importlib.import_module(path.stem)


def test_the_front_page_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        found = path.parent / target if target else path
        assert found.exists(), f"{name_of(path)} links to {link}"
        headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, f"{name_of(path)} links to {link}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_file_that_a_page_names_exists(path: Path) -> None:
    named = re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*[\w/])", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", (*PAGES, *COMMENTED), ids=name_of)
def test_no_page_names_a_folder_of_somebodys_machine(path: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|mnt|Users)/\S*", path.read_text()) == []


def spans(path: Path) -> set[str]:
    """What stands between single backquotes."""
    return set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", path.read_text()))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_setting_that_a_page_names_exists(path: Path) -> None:
    if path == CHANGELOG:  # it names old ones, too
        return
    tops = {field: schema for schema in COMPLETE for field in schema.model_fields}
    dotted = (re.match(r"([a-z_]+)((?:\.[a-z_0-9]+)+)", span) for span in spans(path))
    named = [found[0] for found in dotted if found and found[1] in tops]
    unknown = [name for name in named if place(tops[name.partition(".")[0]], name.split("."), {}) is None]
    assert unknown == []


def test_docstrings_begin_with_what_they_speak_of() -> None:
    dangling = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and str(node.value.value).startswith("Of "):
                dangling.append(f"{name_of(path)}:{node.lineno}")
    assert dangling == []

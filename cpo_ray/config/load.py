"""Load a checked configuration from a TOML file and overrides, and write it back."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cpo_ray.config.keys import Place, place
from cpo_ray.config.root import Config
from cpo_ray.config.section import ConfigError, FreeOnResume, Section, at_home
from cpo_ray.config.text import TextError, read_text, redacted

Settings = TypeVar("Settings", bound=Section)

#: How tomllib names the place of an error.
_LINE = re.compile(r"at line (\d+)")


def load(file: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides (values in TOML syntax, bare words are strings) and validate.

    Raises ConfigError with one sentence per problem.
    """
    return load_as(Config, file, overrides)


def load_as(schema: type[Settings], file: Path | str, overrides: Sequence[str] = ()) -> Settings:
    """`load` for a job whose file has another form."""
    path = at_home(Path(file))
    return _checked(schema, _read(path), overrides, str(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
        return tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; complete ones are in jobs/configs/") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a configuration in TOML") from None
    except TextError as error:
        raise ConfigError(str(error)) from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: its values are nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}{_hint(text, str(error))}") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {str(error).partition(';')[0]}") from None


def _hint(text: str, error: str) -> str:
    """Return what is to do about a backslash on the line of an error; an empty text without one."""
    number = _LINE.search(error)
    line = text.split("\n")[int(number[1]) - 1] if number else ""
    return "; write a path of Windows with / or in single quotes" if "\\" in line else ""


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Return a configuration with some values replaced, as on the command line. Raises ConfigError as `load` does."""
    return _checked(Config, config.model_dump(mode="json", exclude_none=True), overrides, "the configuration")


def _checked(schema: type[Settings], tree: dict[str, Any], overrides: Sequence[str], where: str) -> Settings:
    for text in overrides:
        _override(schema, tree, text)
    return validated(schema, tree, where)


def validated(schema: type[Settings], tree: dict[str, Any], where: str) -> Settings:
    """Read a configuration from a tree of its values. Raises ConfigError with one sentence per problem, each after `where`."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(schema, tree, where, problem) for problem in error.errors())) from None


def dump(config: Config) -> str:
    """Return the resolved configuration as TOML, ready for `--config`."""
    lines: list[str] = []

    def section(name: str, values: dict[str, Any]) -> None:
        lines.append(f"\n[{name}]" if lines else f"[{name}]")
        lines.extend(f"{_key(key)} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict))
        for key, value in values.items():
            if isinstance(value, dict):
                section(f"{name}.{_key(key)}", value)

    for name, values in config.model_dump(mode="json", exclude_none=True).items():
        section(name, values)
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    """A key of one table; one with dots is quoted."""
    return json.dumps(key) if "." in key else key


def _toml(value: Any) -> str:
    """A value on one line; what is no table, no list and no number is written in TOML as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, float):
        return repr(value)
    # JSON would write characters beyond 16 bits as two halves, which TOML forbids, and TOML escapes one control character more.
    written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else written


def changed(record: Path, config: Config) -> list[str]:
    """Return what a resumed run may not change and yet differs from `record`, the `dump` of its configuration when it was begun.

    A setting that is newer than the record has its default there. Raises ConfigError where the record is no configuration.
    """
    try:
        begun = _checked(Config, _read(record), (), record.name)
    except ValueError as error:
        raise ConfigError(
            f"{record} cannot be compared with the present settings ({str(error).splitlines()[0]}): it was cut, or written by "
            "another version; give this run another run.name, or delete the file to resume with the settings that are given now"
        ) from None
    tree = config.model_dump(mode="json", exclude_none=True)
    old, new = _flat(begun.model_dump(mode="json", exclude_none=True)), _flat(tree)
    differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key} = {new.get(key)!r} (was {old.get(key)!r})" for key in differing if not _free(key, tree)]


def _free(key: str, tree: dict[str, Any]) -> bool:
    found = place(Config, key.split("."), tree)
    return found is not None and any(isinstance(mark, FreeOnResume) for mark in found.marks)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _override(schema: type[Section], tree: dict[str, Any], text: str) -> None:
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"override {redacted(text)!r} is not valid text; the terminal and this program must both use UTF-8")
    key, equals, value = text.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not sections or not last:
        raise ConfigError(f"override {redacted(text)!r} is not of the form section.key=value, for instance run.seed=1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value
    inside = tree
    for depth, name in enumerate(sections, start=1):
        given = inside.setdefault(name, {})
        if isinstance(given, str) and (found := place(schema, sections[:depth], tree)) and found.chosen:
            given = inside[name] = found.chosen.table(given)
        if not isinstance(given, dict):
            raise ConfigError(f"override {redacted(text)!r} goes through {name!r}, which is a value, not a section")
        inside = given
    inside[last] = parsed


def _sentence(schema: type[Section], tree: dict[str, Any], where: str, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "the file"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}; {_valid_keys(place(schema, problem['loc'][:-1], tree), str(problem['loc'][-1]))}"
    if problem["type"] == "missing":
        return f"{where}: {key!r} is missing; add it to the file or pass {key}=VALUE"
    message = problem["msg"].removeprefix("Value error, ")
    value = (
        "" if isinstance(problem["input"], dict) else f" is {redacted(repr(problem['input']))}"
    )  # a whole section says nothing
    if problem["type"] in ("string_type", "path_type") and isinstance(problem["input"], bool | int | float | date | time):
        written = f'{key} = "{_plain(problem["input"])}"'
        return f"{where}: {key!r} is a {type(problem['input']).__name__}, and a text is expected; put it in quotes: {written}"
    return f"{where}: {key!r}{value}: {message[0].lower()}{message[1:]}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _valid_keys(here: Place | None, unknown: str) -> str:
    """The keys of the section that lies here, and the one that was probably meant: a similar one, or one a section deeper."""
    assert here is not None and here.section is not None, "unknown keys are found in sections"
    valid = sorted(here.section.model_fields)
    inside = ((name, here.inside(name)) for name in valid)
    deeper = [f"{name}.{unknown}" for name, found in inside if found and found.inside(unknown)]
    near = difflib.get_close_matches(unknown, valid, 1) or deeper
    return f"{f'did you mean {near[0]!r}? ' if near else ''}valid keys here: {', '.join(valid)}"

"""Read YAML values with their line numbers, so that every problem names its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import yaml

from cpo_ray.config.text import TextError, decode_text, read_file
from cpo_ray.hierarchy.tree import HierarchyError, did_you_mean

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_KINDS: dict[type[yaml.Node], str] = {
    yaml.MappingNode: "a mapping",
    yaml.SequenceNode: "a list",
    yaml.ScalarNode: "a single value",
}
_MOST_DEPTH = 100
_NULL = "tag:yaml.org,2002:null"

_Kind = TypeVar("_Kind", bound=yaml.Node)
Plain: TypeAlias = "str | list[Plain] | dict[str, Plain]"


class Source:
    """Reads one YAML file and collects its problems.

    A reader returns an empty value where the file is wrong or a key is missing (`None`), so that one pass finds every problem.
    Scalars are read as written (`no` is the word "no"), and runs of white space become one space.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: list[tuple[int, str]] = []

    def top(self) -> yaml.Node:
        """Return the document's top node. Raises HierarchyError for a file that is not YAML."""
        try:
            content = read_file(self._path)
        except OSError as error:
            raise HierarchyError(f"{self._path}: The hierarchy cannot be read: {error.strerror}.") from error
        try:
            text = decode_text(content, str(self._path))
            depth = 0
            for event in yaml.parse(text, Loader=_LOADER):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > _MOST_DEPTH:  # composing recurses in C, where no limit stops it before the stack ends
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    self.report(line, f"More than {_MOST_DEPTH} lists and mappings are nested here.")
                    raise self.error()
            node = yaml.compose(text, Loader=_LOADER)
        except TextError as error:
            raise HierarchyError(f"{error}.") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            self.report(line, f"This is not YAML: {error.problem}.")
        except yaml.reader.ReaderError as error:
            self.report(text.count("\n", 0, error.position) + 1, f"This is not YAML: {error.reason}.")
        else:
            if node is not None:
                return node
            self.report(1, "The file is empty where a hierarchy is expected.")
        raise self.error()

    def report(self, where: yaml.Node | int, sentence: str) -> None:
        """Note a problem at a node, or at a line counted from 1."""
        self._problems.append((where if isinstance(where, int) else line_of(where), sentence))

    def error(self) -> HierarchyError:
        """Return all problems as one error, ordered by line."""
        ordered = sorted(self._problems, key=lambda problem: problem[0])
        return HierarchyError(*(f"{self._path}:{line}: {sentence}" for line, sentence in ordered))

    def check(self) -> None:
        """Raise HierarchyError if any problem was noted."""
        if self._problems:
            raise self.error()

    def mapping(
        self, node: yaml.Node | None, what: str, required: Sequence[str] = (), optional: Sequence[str] = ()
    ) -> dict[str, yaml.Node]:
        """Return the values of a mapping by key."""
        keys = (*required, *optional)
        found: dict[str, yaml.Node] = {}
        mapping = self._expect(node, yaml.MappingNode, what)
        if mapping is None:
            return found
        for key, value in mapping.value:
            name = str(key.value)
            if name in found:
                self.report(key, f"The key '{name}' of {what} is already on line {line_of(found[name])}.")
            elif name in keys:
                found[name] = value
            else:
                hint = did_you_mean(name, keys)
                self.report(key, f"Unknown key '{name}' in {what}{hint}; valid keys are {', '.join(keys)}.")
        for name in required:
            if name not in found:
                self.report(mapping, f"The key '{name}' is missing in {what}.")
        return found

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        """Return the entries of a list."""
        sequence = self._expect(node, yaml.SequenceNode, what)
        return [] if sequence is None else sequence.value

    def text(self, node: yaml.Node | None, what: str) -> str:
        """Return a text that must not be empty."""
        scalar = self._expect(node, yaml.ScalarNode, what)
        text = "" if scalar is None else _text(scalar)
        if scalar is not None and not text:
            self.report(scalar, f"A text is missing: {what} is empty.")
        return text

    def texts(self, node: yaml.Node | None, what: str) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(self.text(item, f"an entry of {what}") for item in self.items(node, what))

    def _expect(self, node: yaml.Node | None, kind: type[_Kind], what: str) -> _Kind | None:
        if node is None or isinstance(node, kind):
            return node
        self.report(node, f"Expected {_KINDS[kind]} for {what}, found {_KINDS[type(node)]}.")
        return None


def line_of(node: yaml.Node) -> int:
    """Return the line on which a node starts, counted from 1."""
    return node.start_mark.line + 1


def plain(node: yaml.Node) -> Plain:
    """Return a checked node as texts, lists and dicts, without comments, order of keys or quoting."""
    if isinstance(node, yaml.MappingNode):
        return {_text(key): plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(item) for item in node.value]
    return _text(node)


def _text(scalar: yaml.Node) -> str:
    return "" if scalar.tag == _NULL else " ".join(scalar.value.split())

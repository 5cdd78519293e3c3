"""Reads a hierarchy file. The format:

name, version, description; roots: nodes; exclusive (optional): lists of signed ids of which one may hold.
A node has id, label, alternative_labels (optional) and either `children` (nodes) or `attributes`.
An attribute has
  id, label, definition, cue (what to look for), alternative_labels (optional);
  positive and, unless it is one-sided, negative: {label, phrase (at most six words, no comma: what a prompt says)};
  applies_when (optional): {prompt_has_any: words of the prompt that make it apply, note: prose};
  requires, forbids (optional): {positive: signed ids, negative: signed ids}: what that pole needs beside it,
  and what it cannot stand beside.
An id occurs once in the file, for a node or for an attribute; `+id` and `-id` sign the poles of an attribute.

A negative always belongs to a positive and says how that one failed (CPO, S10). As a rule it is the opposite: one or
the other holds. Where it is a flaw of a choice (a circular composition that is closed), let it require its own
positive, `requires: {negative: [+id]}`: then it holds only together with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import yaml

from cpo_ray.hierarchy.check import Reference, contradictions, cycles, unknown_references
from cpo_ray.hierarchy.source import Source, line_of, plain
from cpo_ray.hierarchy.tree import Attribute, Hierarchy, Node, Pole

MAX_PHRASE_WORDS = 6
_ID = re.compile(r"\w[\w.-]*")


def load_hierarchy(path: str | Path) -> Hierarchy:
    """Load the tree of a YAML file. Raises HierarchyError with every problem as `file:line: sentence`."""
    source = Source(Path(path))
    top = source.top()
    reader = _Reader(source)
    hierarchy = reader.hierarchy(top)
    for line, sentence in (
        *unknown_references(hierarchy, reader.references),
        *cycles(hierarchy, reader.lines),
        *contradictions(hierarchy, reader.lines),
    ):
        source.report(line, sentence)
    source.check()
    # Only a checked tree is hashed: in an unchecked one an alias may form a cycle.
    return replace(hierarchy, content_hash=_content_hash(top))


def _content_hash(top: yaml.Node) -> str:
    canonical = json.dumps(plain(top), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class _Reader:
    """Builds the tree from YAML nodes and collects what the checks across the file need."""

    def __init__(self, source: Source) -> None:
        self.lines: dict[str, int] = {}
        self.references: list[Reference] = []
        self._source = source
        self._attributes: dict[str, Attribute] = {}
        self._phrases: dict[str, int] = {}
        self._visited: set[yaml.Node] = set()

    def hierarchy(self, top: yaml.Node) -> Hierarchy:
        """Build as much of the tree as can be read, without its content hash."""
        required = ("name", "version", "description", "roots")
        found = self._source.mapping(top, "the hierarchy", required, ("exclusive",))
        texts = {key: self._source.text(found.get(key), f"the {key} of the hierarchy") for key in required[:3]}
        roots = tuple(self._node(item, ()) for item in self._entries(found.get("roots"), "roots"))
        if "roots" in found and found["roots"].value == []:
            self._source.report(found["roots"], "The hierarchy has no roots: list at least one.")
        groups = self._source.items(found.get("exclusive"), "exclusive")
        exclusive = tuple(self._exclusive_group(group) for group in groups)
        return Hierarchy(**texts, roots=roots, attributes=self._attributes, exclusive=exclusive, content_hash="")

    def _node(self, node: yaml.Node, above: tuple[str, ...]) -> Node:
        kind = "node" if above else "root"
        what = _title(kind, node)
        optional = ("alternative_labels", "children", "attributes")
        found = self._source.mapping(node, what, ("id", "label"), optional)
        path = (*above, self._id(found.get("id"), what))
        children = self._entries(found.get("children"), f"children of {what}")
        attributes = self._entries(found.get("attributes"), f"attributes of {what}")
        given = found.keys() & {"children", "attributes"}
        if found and len(given) != 1:
            which = "both" if given else "neither"
            self._source.report(node, f"Expected either children or attributes in {what}, found {which}.")
        elif any(found[key].value == [] for key in given):
            self._source.report(node, f"There are no attributes below {what}: add one, or remove the {kind}.")
        return Node(
            id=path[-1],
            label=self._source.text(found.get("label"), f"the label of {what}"),
            alternative_labels=self._alternative_labels(found, what),
            children=tuple(self._node(item, path) for item in children),
            attributes=tuple(self._attribute(item, path) for item in attributes),
        )

    def _attribute(self, node: yaml.Node, path: tuple[str, ...]) -> Attribute:
        source, what = self._source, _title("attribute", node)
        required = ("id", "label", "positive", "definition", "cue")
        optional = ("negative", "alternative_labels", "applies_when", "requires", "forbids")
        found = source.mapping(node, what, required, optional)
        applies = source.mapping(found.get("applies_when"), f"applies_when of {what}", (), ("prompt_has_any", "note"))
        requires = self._relation(found, "requires", what)
        forbids = self._relation(found, "forbids", what)
        poles = {
            side: self._pole(found[side], f"the {side} of {what}", requires.get(side, ()), forbids.get(side, ()))
            for side in ("positive", "negative")
            if side in found
        }
        attribute = Attribute(
            id=self._id(found.get("id"), what),
            label=source.text(found.get("label"), f"the label of {what}"),
            positive=poles.get("positive", Pole("", "")),
            negative=poles.get("negative"),
            definition=source.text(found.get("definition"), f"the definition of {what}"),
            cue=source.text(found.get("cue"), f"the cue of {what}"),
            root_id=path[0],
            path=path,
            alternative_labels=self._alternative_labels(found, what),
            prompt_has_any=source.texts(applies.get("prompt_has_any"), f"prompt_has_any of {what}"),
            applies_note=source.text(applies.get("note"), f"the applies_when note of {what}"),
        )
        if attribute.id:
            self._attributes.setdefault(attribute.id, attribute)
        return attribute

    def _pole(self, node: yaml.Node, what: str, requires: tuple[str, ...], forbids: tuple[str, ...]) -> Pole:
        found = self._source.mapping(node, what, ("label", "phrase"))
        label = self._source.text(found.get("label"), f"the label of {what}")
        return Pole(label, self._phrase(found.get("phrase"), what), requires, forbids)

    def _phrase(self, node: yaml.Node | None, what: str) -> str:
        phrase = self._source.text(node, f"the phrase of {what}")
        if node is None or not phrase:
            return phrase
        words = len(phrase.split())
        if words > MAX_PHRASE_WORDS:
            self._source.report(
                node,
                f"The phrase '{phrase}' has {words} words, more than {MAX_PHRASE_WORDS}: shorten it.",
            )
        if "," in phrase:
            self._source.report(node, f"The phrase '{phrase}' has a comma, which parts phrases in a prompt: leave it out.")
        if phrase.casefold() in self._phrases:
            first = self._phrases[phrase.casefold()]
            self._source.report(
                node,
                f"The phrase '{phrase}' is already on line {first}: each pole needs a phrase of its own.",
            )
        self._phrases.setdefault(phrase.casefold(), line_of(node))
        return phrase

    def _relation(self, attribute: dict[str, yaml.Node], key: str, what: str) -> dict[str, tuple[str, ...]]:
        where = f"{key} of {what}"
        sides = self._source.mapping(attribute.get(key), where, (), ("positive", "negative"))
        for side, node in sides.items():
            if side not in attribute:
                self._source.report(node, f"There is no {side} in {what}, so {key} cannot speak of it.")
        return {side: self._signed_ids(node, where) for side, node in sides.items()}

    def _exclusive_group(self, node: yaml.Node) -> frozenset[str]:
        group = frozenset(self._signed_ids(node, "an exclusive group"))
        if isinstance(node, yaml.SequenceNode) and len(group) < 2:
            self._source.report(node, "An exclusive group needs at least two different signed ids.")
        return group

    def _signed_ids(self, node: yaml.Node, where: str) -> tuple[str, ...]:
        items = self._source.items(node, where)
        read = [(self._source.text(item, f"an entry of {where}"), line_of(item)) for item in items]
        self.references += (Reference(signed_id, where, line) for signed_id, line in read if signed_id)
        return tuple(signed_id for signed_id, _ in read)

    def _alternative_labels(self, found: dict[str, yaml.Node], what: str) -> tuple[str, ...]:
        return self._source.texts(found.get("alternative_labels"), f"alternative_labels of {what}")

    def _id(self, node: yaml.Node | None, what: str) -> str:
        identifier = self._source.text(node, f"the id of {what}")
        if node is None or not identifier:
            return ""
        if not _ID.fullmatch(identifier):
            self._source.report(
                node,
                f"The id '{identifier}' may have letters, digits, '_', '-' and '.' only, and no sign first.",
            )
        if identifier in self.lines:
            first = self.lines[identifier]
            self._source.report(node, f"The id '{identifier}' is already on line {first}: an id occurs once in the file.")
        self.lines.setdefault(identifier, line_of(node))
        return identifier

    def _entries(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        # An alias would repeat ids, and an alias of a node above it would never end.
        entries = self._source.items(node, what)
        fresh = [entry for entry in entries if entry not in self._visited]
        for entry in entries:
            if entry in self._visited:
                self._source.report(entry, f"An alias repeats this entry in {what}: write each one out.")
            self._visited.add(entry)
        return fresh


def _title(kind: str, node: yaml.Node) -> str:
    """Return how problems name a node: "attribute 'edge.clarity'", or "this attribute" for one without an id."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "id" and isinstance(value, yaml.ScalarNode) and value.value:
                return f"{kind} '{value.value}'"
    return f"this {kind}"

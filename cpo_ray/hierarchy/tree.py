"""The tree of attributes in memory: roots, nodes, and attributes with one or two poles as leaves.

A *signed id* names one pole of an attribute: `+edge.clarity` is the positive pole, `-edge.clarity` the negative one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from cpo_ray.hierarchy.labels import label_problems


class HierarchyError(ValueError):
    """One or more problems, each a sentence in `args`, printed one per line."""

    def __str__(self) -> str:
        return "\n".join(self.args)


@dataclass(frozen=True)
class Pole:
    """One side of an attribute, with the signed ids that it requires and the ones that it excludes."""

    label: str
    phrase: str
    requires: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attribute:
    """A leaf: something an expert judges in a sample. `path` holds the node ids from the root to the parent."""

    id: str
    label: str
    positive: Pole
    negative: Pole | None
    definition: str
    cue: str
    root_id: str
    path: tuple[str, ...]
    alternative_labels: tuple[str, ...] = ()
    prompt_has_any: tuple[str, ...] = ()
    applies_note: str = ""

    @property
    def negative_is_flaw(self) -> bool:
        """Whether the negative requires its own positive. Then it is a flaw of the positive, and one sample can have both (CPO,
        S10).
        """
        return self.negative is not None and f"+{self.id}" in self.negative.requires

    @property
    def poles(self) -> dict[str, Pole]:
        """Map signed ids to poles: two entries, or one for a one-sided attribute."""
        poles = {f"+{self.id}": self.positive}
        return poles if self.negative is None else poles | {f"-{self.id}": self.negative}

    def applies_to(self, prompt: str) -> bool:
        """Return whether the prompt contains a word of `prompt_has_any`, in any case; True if the attribute names no words."""
        spoken = _spaced_words(prompt)
        return not self.prompt_has_any or any(_spaced_words(word) in spoken for word in self.prompt_has_any)


@dataclass(frozen=True)
class Node:
    """An inner node with either `children` or `attributes`. A root is a node of the first level."""

    id: str
    label: str
    alternative_labels: tuple[str, ...]
    children: tuple[Node, ...]
    attributes: tuple[Attribute, ...]

    def walk(self) -> Iterator[Attribute]:
        """Yield every attribute below this node, in file order."""
        yield from self.attributes
        for child in self.children:
            yield from child.walk()

    def nodes(self) -> Iterator[Node]:
        """Yield this node and every node below it, in file order."""
        yield self
        for child in self.children:
            yield from child.nodes()


@dataclass(frozen=True)
class Hierarchy:
    """A checked tree. `attributes` are in file order; at most one signed id of each `exclusive` group may hold.

    `content_hash` is 16 hexadecimal digits over the content. Comments, key order and quoting do not change it.
    """

    name: str
    version: str
    description: str
    roots: tuple[Node, ...]
    attributes: dict[str, Attribute]
    exclusive: tuple[frozenset[str], ...]
    content_hash: str

    @property
    def levels(self) -> int:
        """Number of levels from the roots to the poles of the deepest attribute, both included."""
        return max(len(attribute.path) for attribute in self.attributes.values()) + 2

    def nodes(self) -> Iterator[Node]:
        """Yield every inner node, roots included, in file order."""
        for root in self.roots:
            yield from root.nodes()

    def root(self, root_id: str) -> Node:
        """Return the root with that id. Raises HierarchyError for an unknown id."""
        for root in self.roots:
            if root.id == root_id:
                return root
        known = ", ".join(root.id for root in self.roots)
        raise HierarchyError(f"There is no root '{root_id}' in hierarchy '{self.name}'; its roots are {known}.")

    def attribute(self, attribute_id: str) -> Attribute:
        """Return the attribute with that id. Raises HierarchyError for an unknown id."""
        if attribute_id not in self.attributes:
            raise HierarchyError(self._unknown(attribute_id))
        return self.attributes[attribute_id]

    def pole(self, signed_id: str) -> Pole:
        """Return the pole that a signed id names. Raises HierarchyError for an unknown signed id."""
        fault = self.fault(signed_id)
        if fault is not None:
            raise HierarchyError(fault)
        return self.attributes[signed_id[1:]].poles[signed_id]

    def phrase(self, signed_id: str) -> str:
        """Return the words that a prompt uses for a pole. Raises HierarchyError for an unknown signed id."""
        return self.pole(signed_id).phrase

    def root_of(self, attribute_id: str) -> Node:
        """Return the root above an attribute. Raises HierarchyError for an unknown attribute."""
        return self.root(self.attribute(attribute_id).root_id)

    def fault(self, signed_id: str) -> str | None:
        """Return one sentence that says why a signed id names no pole of this tree, or None if it names one."""
        if signed_id[:1] not in ("+", "-"):
            return f"The signed id '{signed_id}' has no sign: write '+{signed_id}' or '-{signed_id}'."
        attribute_id = signed_id[1:]
        if attribute_id not in self.attributes:
            return self._unknown(attribute_id)
        if signed_id not in self.attributes[attribute_id].poles:
            return f"'{signed_id}' does not exist: attribute '{attribute_id}' is one-sided (no negative)."
        return None

    def problems(self, positive_ids: Sequence[str], negative_ids: Sequence[str], prompt: str) -> list[str]:
        """Return one sentence for each fault in the labels of one sample; an empty list if they are possible."""
        return label_problems(self, positive_ids, negative_ids, prompt)

    def _unknown(self, attribute_id: str) -> str:
        hint = did_you_mean(attribute_id, self.attributes)
        return f"There is no attribute '{attribute_id}' in hierarchy '{self.name}'{hint}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean '…'?)" with the most similar known word, or an empty text if none is similar."""
    nearest = get_close_matches(word, known, n=1)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


def _spaced_words(text: str) -> str:
    # With a space on both sides of each word, "sea" is found in "over the sea." and not in "season".
    return " " + " ".join(re.findall(r"\w+", text.casefold())) + " "

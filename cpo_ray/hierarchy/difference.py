"""Compare two versions of a hierarchy, sorted by the effect on annotations made with the older one.

- *meaning*: the condition for a label changed, so old labels may be wrong. Ask about the attribute again.
- *wording*: labels stay valid, but prompts change, and with them the targets of training.
- *rules*: each label stays valid, but labels that stood together may now exclude each other.
- *place*: names or the place in the tree changed. No annotation is affected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cpo_ray.hierarchy.show import phrases
from cpo_ray.hierarchy.tree import Attribute, Hierarchy, Pole

_NONE = Pole("", "")

#: Effect → the fields of an attribute whose change has it, under their names in the file format.
EFFECTS: dict[str, dict[str, Callable[[Attribute], object]]] = {
    "meaning": {
        "definition": lambda attribute: attribute.definition,
        "cue": lambda attribute: attribute.cue,
        "applies_when": lambda attribute: (attribute.prompt_has_any, attribute.applies_note),
        "positive label": lambda attribute: attribute.positive.label,
        "negative label": lambda attribute: (attribute.negative or _NONE).label,
    },
    "wording": {
        "positive phrase": lambda attribute: attribute.positive.phrase,
        "negative phrase": lambda attribute: (attribute.negative or _NONE).phrase,
    },
    "rules": {
        "requires": lambda attribute: [set(pole.requires) for pole in attribute.poles.values()],
        "forbids": lambda attribute: [set(pole.forbids) for pole in attribute.poles.values()],
    },
    "place": {
        "label": lambda attribute: attribute.label,
        "alternative_labels": lambda attribute: attribute.alternative_labels,
        "path": lambda attribute: attribute.path,
    },
}


@dataclass(frozen=True)
class Difference:
    """The changes between two versions.

    `changed` maps each effect to the attributes present in both versions and their changed fields, under their new ids. `renamed`
    maps old ids to new ones, for attributes whose meaning and wording are the same under another id. `nodes` maps the ids of
    inner nodes to "added", "removed" or "label".
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    renamed: dict[str, str]
    changed: dict[str, dict[str, tuple[str, ...]]]
    nodes: dict[str, str]
    groups_added: tuple[frozenset[str], ...]
    groups_removed: tuple[frozenset[str], ...]

    @property
    def to_ask(self) -> tuple[str, ...]:
        """Attributes to ask about again: the older annotations lack them, or may be wrong about them."""
        return (*self.added, *self.changed["meaning"])


def difference(old: Hierarchy, new: Hierarchy) -> Difference:
    """Compare `old` with `new`; every list follows the order of its file."""
    removed = [name for name in old.attributes if name not in new.attributes]
    fresh = {_essence(attribute): name for name, attribute in new.attributes.items() if name not in old.attributes}
    renamed = {name: fresh[essence] for name in removed if (essence := _essence(old.attributes[name])) in fresh}
    origin = {new_name: old_name for old_name, new_name in renamed.items()}
    pairs = {
        name: (old.attributes[origin.get(name, name)], attribute)
        for name, attribute in new.attributes.items()
        if origin.get(name, name) in old.attributes
    }
    changed: dict[str, dict[str, tuple[str, ...]]] = {}
    for effect, fields in EFFECTS.items():
        compared = {name: tuple(f for f, read in fields.items() if read(a) != read(b)) for name, (a, b) in pairs.items()}
        changed[effect] = {name: differing for name, differing in compared.items() if differing}
    return Difference(
        added=tuple(name for name in new.attributes if name not in pairs),
        removed=tuple(name for name in removed if name not in renamed),
        renamed=renamed,
        changed=changed,
        nodes=_nodes(old, new),
        groups_added=tuple(group for group in new.exclusive if group not in old.exclusive),
        groups_removed=tuple(group for group in old.exclusive if group not in new.exclusive),
    )


def told(old: Hierarchy, new: Hierarchy, found: Difference) -> Iterator[str]:
    """Yield the difference as lines for a terminal."""
    yield f"{old.name} {old.version} ({old.content_hash}) → {new.name} {new.version} ({new.content_hash})"
    if old.content_hash == new.content_hash:
        yield "nothing changed"
    yield from (f"added: {name}: {phrases(new.attributes[name])}" for name in found.added)
    yield from (f"removed: {name}: {phrases(old.attributes[name])}" for name in found.removed)
    yield from (f"renamed: {old_name} is {new_name} now" for old_name, new_name in found.renamed.items())
    for effect, attributes in found.changed.items():
        yield from (f"{effect}: {name}: {', '.join(fields)}" for name, fields in attributes.items())
    yield from (f"place: node {name}: {what}" for name, what in found.nodes.items())
    yield from (f"rules: exclusive group added: {', '.join(sorted(group))}" for group in found.groups_added)
    yield from (f"rules: exclusive group removed: {', '.join(sorted(group))}" for group in found.groups_removed)


def _nodes(old: Hierarchy, new: Hierarchy) -> dict[str, str]:
    before, after = ({node.id: (node.label, node.alternative_labels) for node in tree.nodes()} for tree in (old, new))
    removed = {name: "removed" for name in before if name not in after}
    added = {name: "added" for name in after if name not in before}
    return removed | added | {name: "label" for name in after if name in before and after[name] != before[name]}


def _essence(attribute: Attribute) -> tuple[object, ...]:
    """Return everything that identifies an attribute under another id. Ids, and rules that name ids, are left out."""
    poles = tuple((pole.label, pole.phrase) for pole in attribute.poles.values())
    return (attribute.definition, attribute.cue, attribute.prompt_has_any, attribute.applies_note, poles)

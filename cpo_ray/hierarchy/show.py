"""Print a hierarchy as text: the whole tree, a branch, or one attribute with all its fields."""

from __future__ import annotations

from collections.abc import Iterator

from cpo_ray.hierarchy.tree import Attribute, Hierarchy, HierarchyError, Node, did_you_mean


def summary(hierarchy: Hierarchy) -> str:
    """Return the size and the hash of a tree in one line."""
    pairs = sum(attribute.negative is not None for attribute in hierarchy.attributes.values())
    one_sided = len(hierarchy.attributes) - pairs
    return (
        f"{len(hierarchy.roots)} roots, {pairs} pairs, {one_sided} one-sided attributes, {hierarchy.levels} levels, "
        f"{len(hierarchy.exclusive)} exclusive groups, content hash {hierarchy.content_hash}"
    )


def drawing(hierarchy: Hierarchy) -> Iterator[str]:
    """Yield the lines of the whole tree."""
    yield f"{hierarchy.name} {hierarchy.version}: {summary(hierarchy)}"
    yield from _branches(hierarchy.roots, "")
    for group in hierarchy.exclusive:
        yield f"exclusive: {', '.join(sorted(group))}"


def part(hierarchy: Hierarchy, entry_id: str) -> Iterator[str]:
    """Yield the lines of one node's branch, or all fields of one attribute. Raises HierarchyError for an unknown id."""
    if entry_id in hierarchy.attributes:
        yield from _record(hierarchy, hierarchy.attributes[entry_id])
        return
    nodes = {node.id: node for node in hierarchy.nodes()}
    if entry_id not in nodes:
        hint = did_you_mean(entry_id, [*nodes, *hierarchy.attributes])
        raise HierarchyError(f"There is no node or attribute '{entry_id}' in hierarchy '{hierarchy.name}'{hint}.")
    yield f"{entry_id}: {nodes[entry_id].label}"
    yield from _branches(nodes[entry_id].children or nodes[entry_id].attributes, "")


def phrases(attribute: Attribute) -> str:
    """Return the phrases of both poles in one line, the positive first."""
    both = " / ".join(pole.phrase for pole in attribute.poles.values())
    return f"{both} (a flaw of it)" if attribute.negative_is_flaw else both


def _branches(entries: tuple[Node, ...] | tuple[Attribute, ...], indent: str) -> Iterator[str]:
    for entry in entries:
        last = entry is entries[-1]
        corner, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        if isinstance(entry, Attribute):
            yield f"{indent}{corner}{entry.id}: {phrases(entry)}"
        else:
            yield f"{indent}{corner}{entry.id}: {entry.label}"
            yield from _branches(entry.children or entry.attributes, indent + below)


def _record(hierarchy: Hierarchy, attribute: Attribute) -> Iterator[str]:
    labels = {node.id: node.label for node in hierarchy.nodes()}
    yield f"{attribute.id}: {attribute.label}"
    said = {
        "below": " › ".join(labels[name] for name in attribute.path),
        "also called": ", ".join(attribute.alternative_labels),
        "definition": attribute.definition,
        "cue": attribute.cue,
        "applies": attribute.applies_note,
        "prompt words": ", ".join(attribute.prompt_has_any),
    }
    for signed_id, pole in attribute.poles.items():
        mates = set().union(*(group for group in hierarchy.exclusive if signed_id in group)) - {signed_id}
        said[signed_id] = f"{pole.label}: {pole.phrase}"
        said[f"{signed_id} requires"] = ", ".join(pole.requires)
        said[f"{signed_id} excludes"] = ", ".join(sorted(mates | set(pole.forbids)))
    yield from (f"  {name}: {text}" for name, text in said.items() if text)

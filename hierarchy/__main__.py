"""`python -m hierarchy show|check FILE`: a hierarchy as a tree in the terminal, or what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from hierarchy import Attribute, Hierarchy, HierarchyError, Node, load_hierarchy


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hierarchy", description="Show or check a hierarchy.")
    parser.add_argument("action", choices=("show", "check"), help="draw the tree, or check the file")
    parser.add_argument("file", type=Path, help="the hierarchy's YAML file")
    arguments = parser.parse_args()
    try:
        hierarchy = load_hierarchy(arguments.file)
    except HierarchyError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.action == "show":
        print("\n".join(drawing(hierarchy)))
    else:
        print(f"{arguments.file}: no problems; {summary(hierarchy)}")
    return 0


def summary(hierarchy: Hierarchy) -> str:
    """The size and the hash of a tree in one line."""
    pairs = sum(attribute.negative is not None for attribute in hierarchy.attributes.values())
    one_sided = len(hierarchy.attributes) - pairs
    return (
        f"{len(hierarchy.roots)} roots, {pairs} pairs, {one_sided} one-sided attributes, "
        f"{len(hierarchy.exclusive)} exclusive groups, content hash {hierarchy.content_hash}"
    )


def drawing(hierarchy: Hierarchy) -> Iterator[str]:
    """The lines of the tree as a terminal shows it."""
    yield f"{hierarchy.name} {hierarchy.version}: {summary(hierarchy)}"
    yield from _branches(hierarchy.roots, "")
    for group in hierarchy.exclusive:
        yield f"exclusive: {', '.join(sorted(group))}"


def _branches(entries: tuple[Node, ...] | tuple[Attribute, ...], indent: str) -> Iterator[str]:
    for entry in entries:
        last = entry is entries[-1]
        corner, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        if isinstance(entry, Attribute):
            yield f"{indent}{corner}{entry.id}: {' / '.join(pole.phrase for pole in entry.poles.values())}"
        else:
            yield f"{indent}{corner}{entry.id}: {entry.label}"
            yield from _branches(entry.children or entry.attributes, indent + below)


if __name__ == "__main__":
    sys.exit(main())

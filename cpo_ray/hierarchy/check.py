"""What can be wrong between the attributes of a tree, each with every entry in itself well formed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from cpo_ray.hierarchy.tree import Hierarchy, Pole

Problem = tuple[int, str]
"""A line, counted from 1, and a sentence."""


@dataclass(frozen=True)
class Reference:
    """A signed id that was read, the place that names it (as problems call it) and its line."""

    signed_id: str
    where: str
    line: int


def unknown_references(hierarchy: Hierarchy, references: Iterable[Reference]) -> Iterator[Problem]:
    """Signed ids without a sign, of no attribute, or of the negative of a one-sided attribute."""
    for reference in references:
        fault = hierarchy.fault(reference.signed_id)
        if fault is not None:
            yield reference.line, f"In {reference.where}: {fault}"


def cycles(hierarchy: Hierarchy, lines: Mapping[str, int]) -> Iterator[Problem]:
    """Chains of `requires` that lead back to their start. `lines` holds the line of each id."""
    required = {signed_id: list(pole.requires) for signed_id, pole in _poles(hierarchy).items()}
    while cycle := _cycle(required):
        start = cycle[-1]
        chain = " requires ".join(f"'{signed_id}'" for signed_id in reversed(cycle))
        yield lines[start[1:]], f"The requirements lead in a circle: {chain}."
        # Cut where it starts, so that the next round finds the next one.
        required[start].remove(cycle[-2])


def contradictions(hierarchy: Hierarchy, lines: Mapping[str, int]) -> Iterator[Problem]:
    """Poles that can never hold, since what they require cannot hold beside them or beside itself."""
    poles = _poles(hierarchy)
    groups: defaultdict[str, set[int]] = defaultdict(set)
    for number, group in enumerate(hierarchy.exclusive):
        for signed_id in group:
            groups[signed_id].add(number)
    for signed_id, pole in poles.items():
        if not pole.requires:
            continue
        for one, other in combinations(sorted(_needed(signed_id, poles)), 2):
            if (
                (one[1:] == other[1:] and not hierarchy.attributes[one[1:]].negative_is_flaw)
                or not groups[one].isdisjoint(groups[other])
                or other in poles[one].forbids
                or one in poles[other].forbids
            ):
                meeting = f"by its requirements '{one}' meets '{other}', and they exclude each other"
                yield lines[signed_id[1:]], f"'{signed_id}' can never hold: {meeting}."


def _poles(hierarchy: Hierarchy) -> dict[str, Pole]:
    return {signed_id: pole for attribute in hierarchy.attributes.values() for signed_id, pole in attribute.poles.items()}


def _cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The nodes of one circle, each before the one that points to it, the last being the first; or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        nodes: list[str] = error.args[1]
        return nodes
    return []


def _needed(signed_id: str, poles: Mapping[str, Pole]) -> set[str]:
    """The signed id with all that it requires, directly or through others."""
    needed: set[str] = set()
    waiting = [signed_id]
    while waiting:
        current = waiting.pop()
        if current in poles and current not in needed:
            needed.add(current)
            waiting.extend(poles[current].requires)
    return needed

"""Checks between the attributes of a tree: unknown references, circular requirements, poles that can never hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from cpo_ray.hierarchy.tree import Hierarchy, Pole

Problem = tuple[int, str]
"""A line number, counted from 1, and a sentence."""


@dataclass(frozen=True)
class Reference:
    """A signed id found in the file, the place that names it, and its line."""

    signed_id: str
    where: str
    line: int


def unknown_references(hierarchy: Hierarchy, references: Iterable[Reference]) -> Iterator[Problem]:
    """Yield a problem for each signed id that has no sign, names no attribute, or names the negative of a one-sided attribute."""
    for reference in references:
        fault = hierarchy.fault(reference.signed_id)
        if fault is not None:
            yield reference.line, f"In {reference.where}: {fault}"


def cycles(hierarchy: Hierarchy, lines: Mapping[str, int]) -> Iterator[Problem]:
    """Yield a problem for each chain of `requires` that leads back to its start. `lines` maps each id to its line."""
    required = {signed_id: list(pole.requires) for signed_id, pole in _poles(hierarchy).items()}
    while cycle := _cycle(required):
        start = cycle[-1]
        chain = " requires ".join(f"'{signed_id}'" for signed_id in reversed(cycle))
        yield lines[start[1:]], f"The requirements lead in a circle: {chain}."
        # Cutting the cycle at its start lets the next round find the next cycle.
        required[start].remove(cycle[-2])


def contradictions(hierarchy: Hierarchy, lines: Mapping[str, int]) -> Iterator[Problem]:
    """Yield a problem for each pole that can never hold, because what it requires excludes the pole or excludes itself."""
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
    """Return the nodes of one cycle, each before the one that points to it and the first one again at the end; or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        nodes: list[str] = error.args[1]
        return nodes
    return []


def _needed(signed_id: str, poles: Mapping[str, Pole]) -> set[str]:
    """Return the signed id with everything it requires, directly or through others."""
    needed: set[str] = set()
    waiting = [signed_id]
    while waiting:
        current = waiting.pop()
        if current in poles and current not in needed:
            needed.add(current)
            waiting.extend(poles[current].requires)
    return needed

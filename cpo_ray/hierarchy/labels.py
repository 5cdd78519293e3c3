"""Check whether the labels of one sample are possible under the tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpo_ray.hierarchy.tree import Hierarchy


def label_problems(hierarchy: Hierarchy, positive_ids: Sequence[str], negative_ids: Sequence[str], prompt: str) -> list[str]:
    """Return one sentence for each contradiction in the labels. Ids are attribute ids without a sign."""
    counts = Counter([f"+{name}" for name in positive_ids] + [f"-{name}" for name in negative_ids])
    faults = {signed_id: hierarchy.fault(signed_id) for signed_id in counts}
    held = {signed_id: None for signed_id, fault in faults.items() if fault is None}
    return [
        *dict.fromkeys(fault for fault in faults.values() if fault is not None),
        *(f"'{signed_id}' is listed {count} times." for signed_id, count in counts.items() if count > 1),
        *_both_poles(hierarchy, held),
        *_exclusions(hierarchy, held),
        *_relations(hierarchy, held),
        *_applicability(hierarchy, held, prompt),
    ]


# `held` is a dict without values: a set that keeps the order of the labels, and with it the order of the sentences.


def _both_poles(hierarchy: Hierarchy, held: dict[str, None]) -> list[str]:
    both = [signed_id[1:] for signed_id in held if signed_id[0] == "+" and f"-{signed_id[1:]}" in held]
    return [
        f"Attribute '{name}' is both positive and negative." for name in both if not hierarchy.attributes[name].negative_is_flaw
    ]


def _exclusions(hierarchy: Hierarchy, held: dict[str, None]) -> list[str]:
    violated = [group for group in hierarchy.exclusive if sum(member in held for member in group) > 1]
    return [
        " and ".join(f"'{signed_id}'" for signed_id in held if signed_id in group) + " exclude each other." for group in violated
    ]


def _relations(hierarchy: Hierarchy, held: dict[str, None]) -> list[str]:
    problems = []
    for signed_id in held:
        pole = hierarchy.pole(signed_id)
        for needed in pole.requires:
            if needed not in held:
                problems.append(f"'{signed_id}' requires '{needed}', which is not among the labels.")
        for other in pole.forbids:
            if other in held:
                problems.append(f"'{signed_id}' cannot hold where '{other}' holds.")
    return problems


def _applicability(hierarchy: Hierarchy, held: dict[str, None], prompt: str) -> list[str]:
    attributes = (hierarchy.attributes[name] for name in dict.fromkeys(signed_id[1:] for signed_id in held))
    return [
        f"Attribute '{attribute.id}' does not apply to the prompt '{prompt}', "
        f"which has none of the words {', '.join(attribute.prompt_has_any)}."
        for attribute in attributes
        if not attribute.applies_to(prompt)
    ]

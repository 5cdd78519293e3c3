"""The first page of a run: the expert's pictures beside the attributes asked for and found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ray.config import Config
from cpo_ray.core.prompts import Labels, in_hierarchy_order
from cpo_ray.evaluation.gate import GatePictures, Obedience
from cpo_ray.hierarchy import Hierarchy
from cpo_ray.reports import page

#: Requests that the page shows.
SHOWN = 12
#: Pictures smaller than this are drawn with hard pixels.
COARSE = 160
HEADS = {"C": "asked for good and bad", "A": "asked for good, bad refused"}


@dataclass(frozen=True)
class Wish:
    """One attribute that was asked for or refused, and whether the picture obeys; None if nobody has looked."""

    phrase: str
    refused: bool
    met: bool | None


def gate_page(config: Config, drawn: GatePictures, tree: Hierarchy) -> str:
    """Return the page as HTML."""
    return page.render(
        Path(__file__).with_name("gate.html"),
        run=config.run.name,
        requests=[_request(drawn, tree, index) for index in shown(drawn.requests)],
        obedience=None if drawn.found is None else Obedience.of(drawn),
        expected=config.expert.obedience_gate,
    )


def shown(requests: Sequence[Labels]) -> list[int]:
    """Return the requests that the page shows: the first ones, with those without a bad attribute last, since A and C are equal
    there.
    """
    return sorted(range(len(requests)), key=lambda index: not requests[index].negative_ids)[:SHOWN]


def _request(drawn: GatePictures, tree: Hierarchy, index: int) -> dict[str, Any]:
    request = drawn.requests[index]
    return {"prompt": request.prompt, "cells": [_cell(drawn, tree, key, index) for key in HEADS]}


def _cell(drawn: GatePictures, tree: Hierarchy, key: str, index: int) -> dict[str, Any]:
    request, picture = drawn.requests[index], drawn.pictures[key][index]
    found = None if drawn.found is None else drawn.found[key][index]

    def wishes(sign: str, asked: Sequence[str], seen: Sequence[str] | None, refused: bool = False) -> list[Wish]:
        ids = in_hierarchy_order(asked, tree)
        return [Wish(tree.phrase(f"{sign}{i}"), refused, None if seen is None else (i in seen) != refused) for i in ids]

    good = wishes("+", request.positive_ids, None if found is None else found.positive_ids)
    bad = wishes("-", request.negative_ids, None if found is None else found.negative_ids, refused=key == "A")
    more = () if found is None else set(found.negative_ids) - set(request.negative_ids)
    return {
        "head": HEADS[key],
        "image": page.data_uri(picture),
        "pixelated": max(picture.shape[:2]) < COARSE,
        "groups": {"good, asked for": good, "bad, refused" if key == "A" else "bad, asked for": bad},
        "met": f"{sum(bool(wish.met) for wish in (*good, *bad))} of {len(good) + len(bad)} met" if found is not None else "",
        "more": [tree.phrase(f"-{i}") for i in in_hierarchy_order(more, tree)],
    }

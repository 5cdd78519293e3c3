"""Read answers as data: keep what answers the question and is possible under the tree; drop and count the rest.

Nothing in an answer is executed, followed or shown to another question. A picture that tells the model what to answer can at
worst get wrong labels for itself, out of ids that it could have had anyway.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.hierarchy import Hierarchy

MAX_PROMPT = 400
#: Places where an object may begin, so that no answer takes long to read.
_TRIES = 50
_OBJECT = "the answer must be one JSON object"


class AnswerError(ValueError):
    """The answer cannot be used; the message says why, and the back end is told when the question is asked again."""


@dataclass(frozen=True)
class RootAnswer:
    """Holds what one answer says about one root. `dropped` counts what was left out, by reason; `contradictions` describes the
    worst of it.
    """

    description: str
    sub_dimensions: tuple[str, ...]
    positive_ids: tuple[str, ...]
    negative_ids: tuple[str, ...]
    dropped: Counter[str] = field(default_factory=Counter)
    contradictions: tuple[str, ...] = ()


def content_prompt(text: str) -> str:
    """Return the content prompt y from an answer to the question for it. Raises AnswerError."""
    prompt = _object(text).get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise AnswerError("'prompt' is missing or no text")
    prompt = " ".join(prompt.split())
    if len(prompt) > MAX_PROMPT or not _is_unicode(prompt):
        raise AnswerError(f"'prompt' must be valid text of at most {MAX_PROMPT} characters")
    return prompt


def missing(text: str) -> tuple[str, ...]:
    """Return what a picture does not show of its prompt, from an answer to the question for it. Raises AnswerError."""
    answer = _object(text)
    named, lacking = (_list(answer, key) for key in ("named", "missing"))
    if not all(isinstance(entry, str) for entry in (*named, *lacking)):
        raise AnswerError("'named' and 'missing' must hold texts alone")
    if not named:
        raise AnswerError("'named' is empty; name what the text asks for")
    return tuple(lacking)


def judgement(text: str, question: Question, tree: Hierarchy) -> RootAnswer:
    """Read an answer about one root. Raises AnswerError if it is not JSON or lacks a part."""
    answer = _object(text)
    expected = question.schema["properties"]
    dropped = Counter({"unknown key": n} if (n := len(answer.keys() - expected.keys())) else {})
    description = answer.get("description")
    if not isinstance(description, str):
        raise AnswerError("'description' is missing or no text")
    if not _is_unicode(description):
        raise AnswerError("'description' is not valid Unicode")
    parts = {key: _list(answer, key) for key in expected if key != "description"}
    chosen = _known(parts.get("sub_dimensions", []), question.sub_dimensions, (), dropped)
    applying = set(chosen)

    def labels(key: str) -> tuple[str, ...]:
        allowed = expected[key]["items"].get("enum", ())
        ids = _known(parts[key], allowed, tree.attributes, dropped)
        fitting = [i for i in ids if not question.sub_dimensions or applying.intersection(tree.attributes[i].path)]
        dropped["sub-dimension does not apply"] += len(ids) - len(fitting)
        return tuple(fitting)

    positive, negative, contradictions = settle(tree, labels("positive_ids"), labels("negative_ids"), question.attribute_ids)
    dropped["contradiction"] += len(frozenset().union(*(c.dropped for c in contradictions)))
    sentences = tuple(c.sentence for c in contradictions)
    return RootAnswer(description, chosen, positive, negative, +dropped, sentences)


@dataclass(frozen=True)
class Contradiction:
    """Labels that cannot stand together: signed ids, all of them dropped."""

    sentence: str
    dropped: frozenset[str]


def settle(
    tree: Hierarchy, positive_ids: Iterable[str], negative_ids: Iterable[str], within: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...], list[Contradiction]]:
    """Return the labels that can stand together, in the given order, and what was dropped.

    Of labels that exclude each other none can be trusted, so all are dropped; then those that lack what they require.
    Requirements outside of the attributes `within` count as met: they are settled when all roots are known.
    """
    held = dict.fromkeys([f"+{i}" for i in positive_ids] + [f"-{i}" for i in negative_ids])
    found = [Contradiction(f"{_listed(clash)} exclude each other", frozenset(clash)) for clash in _clashes(tree, held)]
    for contradiction in found:
        for signed in contradiction.dropped:
            held.pop(signed, None)
    inside = set(within)
    while lacking := {
        signed: missing
        for signed in held
        if (missing := [x for x in tree.pole(signed).requires if x not in held and x[1:] in inside])
    }:
        for signed, missing in lacking.items():
            found.append(Contradiction(f"{_listed([signed])} requires {_listed(missing)}", frozenset({signed})))
            del held[signed]
    positive = tuple(signed[1:] for signed in held if signed[0] == "+")
    negative = tuple(signed[1:] for signed in held if signed[0] == "-")
    return positive, negative, found


def _clashes(tree: Hierarchy, held: Collection[str]) -> list[list[str]]:
    """Return sets of signed ids that cannot stand together."""
    clashes = [members for group in tree.exclusive if len(members := [x for x in held if x in group]) > 1]
    for signed in held:
        attribute = tree.attributes[signed[1:]]
        if signed[0] == "+" and f"-{attribute.id}" in held and not attribute.negative_is_flaw:
            clashes.append([signed, f"-{attribute.id}"])
        clashes += [[signed, other] for other in tree.pole(signed).forbids if other in held]
    return clashes


def _known(given: list[Any], allowed: Collection[str], elsewhere: Collection[str], dropped: Counter[str]) -> tuple[str, ...]:
    """Return the ids of a list that may be answered, each once."""
    kept: dict[str, None] = {}
    for entry in given:
        if not isinstance(entry, str):
            dropped["no text"] += 1
        elif entry not in allowed:
            dropped["not asked" if entry in elsewhere else "unknown id"] += 1
        elif entry in kept:
            dropped["repeated"] += 1
        else:
            kept[entry] = None
    return tuple(kept)


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object in an answer, which models also put into a fence, behind words, or behind what they think."""
    said = text.rpartition("</think>")[2]
    try:
        answer = json.loads(said)
    except (ValueError, RecursionError):
        answer = _longest_object(said)
    if not isinstance(answer, dict):
        raise AnswerError(_OBJECT)
    return answer


def _longest_object(text: str) -> Any:
    """Return the longest whole JSON object in a text. Raises AnswerError if there is none."""
    decoder, found, longest, position = json.JSONDecoder(), None, 0, text.find("{")
    for _ in range(_TRIES):
        if position < 0:
            break
        try:
            answer, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if end - position > longest:
                found, longest = answer, end - position
        position = text.find("{", end)
    if found is None:
        raise AnswerError(f"{_OBJECT}, complete and with nothing around it")
    return found


def _list(answer: dict[str, Any], key: str) -> list[Any]:
    value = answer.get(key)
    if not isinstance(value, list):
        raise AnswerError(f"{key!r} is missing or no list")
    return value


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _listed(signed_ids: Iterable[str]) -> str:
    spoken = (f"{'positive' if x[0] == '+' else 'negative'} {x[1:]}" for x in signed_ids)
    return " and ".join(spoken)

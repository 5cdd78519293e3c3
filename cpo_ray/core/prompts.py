"""From labels to the condition texts of the method: y, (y, A_pos), (A_neg), (y, A_pos, A_neg) and ∅ (CPO, Eq. 10 and 11).

A text is comma-joined, "y, phrase, phrase": the content prompt, then positive phrases, then negative ones, in hierarchy order.

What does not fit a tokenizer's limit is dropped by one rule.  The content prompt y stays whole; attributes go one by one, each
time the last of the polarity that has more left, so that both stay represented (of two equal numbers a positive goes: c_all and
c_pos differ by the negatives alone).  The same attributes go from all texts of a sample, since the differences between its texts
are what the targets are made of.  Only a y that is too long by itself is cut, after its last word that fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from cpo_ray.config import ConditionMixture
from cpo_ray.hierarchy import Hierarchy

#: Raise it with every change here that changes a text: target shards are addressed by it, and old ones not taken for new.
TEMPLATE_VERSION = 1

#: Stands in `dropped` for the end of a content prompt that was cut; attributes stand there as signed ids.
PROMPT_END = "prompt"

FORMS = ("null", "negative", "content", "content_positive", "all")


@dataclass(frozen=True)
class Labels:
    """What is known of one picture: its content prompt y and the attribute ids of A_pos and A_neg, without signs."""

    prompt: str
    positive_ids: tuple[str, ...]
    negative_ids: tuple[str, ...]


@dataclass(frozen=True)
class ConditionTexts:
    """The texts of one sample: y, (y, A_pos), (A_neg), (y, A_pos, A_neg) and ∅."""

    content: str
    positive: str
    negative: str
    all: str
    null: str = ""


def in_hierarchy_order(ids: Iterable[str], tree: Hierarchy) -> tuple[str, ...]:
    """Attribute ids in the order of the tree's file. Raises HierarchyError for an unknown id."""
    place = {attribute_id: number for number, attribute_id in enumerate(tree.attributes)}
    return tuple(sorted(ids, key=lambda attribute_id: place[tree.attribute(attribute_id).id]))


def condition_texts(
    labels: Labels, tree: Hierarchy, count_tokens: Callable[[str], int], token_limit: int
) -> tuple[ConditionTexts, tuple[str, ...]]:
    """The texts of a sample within `token_limit`, and what was dropped for it by the module's rule, in the order it went.

    `count_tokens` counts a text with its start and end tokens.  `dropped` holds signed ids and, where y was cut, PROMPT_END.
    Raises HierarchyError for an attribute or a pole that the tree does not have.
    """
    positive = [f"+{attribute_id}" for attribute_id in in_hierarchy_order(labels.positive_ids, tree)]
    negative = [f"-{attribute_id}" for attribute_id in in_hierarchy_order(labels.negative_ids, tree)]
    dropped: list[str] = []
    content = labels.prompt
    # The text of everything is the longest of the sample: the others are parts of it.
    while count_tokens(_join(content, positive + negative, tree)) > token_limit:
        if positive or negative:
            dropped.append((positive if len(positive) >= len(negative) else negative).pop())
        else:
            content = _cut(content, count_tokens, token_limit)
            dropped.append(PROMPT_END)
            break
    texts = ConditionTexts(
        content=content,
        positive=_join(content, positive, tree),
        negative=_join("", negative, tree),
        all=_join(content, positive + negative, tree),
    )
    return texts, tuple(dropped)


def stage_one_text(
    labels: Labels,
    tree: Hierarchy,
    mixture: ConditionMixture,
    generator: np.random.Generator,
    count_tokens: Callable[[str], int],
    token_limit: int,
) -> str:
    """The condition of one picture at one step of stage 1: a form drawn by the mixture's shares, attributes left out at random.

    A form that is left without any words, such as A_neg of a faultless picture, is the null condition "".
    Raises ValueError where all shares are 0, and HierarchyError as `condition_texts` does.
    """
    shares = np.array([mixture.null, mixture.negative, mixture.content, mixture.content_positive, mixture.all])
    if shares.sum() == 0:
        raise ValueError(f"all shares of the condition mixture are 0; give at least one of {', '.join(FORMS)} a positive share")
    form = FORMS[generator.choice(len(FORMS), p=shares / shares.sum())]
    kept = replace(
        labels,
        positive_ids=_thin(labels.positive_ids, mixture.attribute_dropout, generator),
        negative_ids=_thin(labels.negative_ids, mixture.attribute_dropout, generator),
    )
    texts, _ = condition_texts(kept, tree, count_tokens, token_limit)
    return {
        "null": texts.null,
        "negative": texts.negative,
        "content": texts.content,
        "content_positive": texts.positive,
        "all": texts.all,
    }[form]


def _join(content: str, signed_ids: list[str], tree: Hierarchy) -> str:
    phrases = [tree.phrase(signed_id) for signed_id in signed_ids]
    return ", ".join([content, *phrases] if content else phrases)


def _cut(content: str, count_tokens: Callable[[str], int], token_limit: int) -> str:
    """The longest run of words from the start that fits; more words never take fewer tokens."""
    words = content.split()
    fitting = bisect_right(range(1, len(words) + 1), token_limit, key=lambda n: count_tokens(" ".join(words[:n])))
    return " ".join(words[:fitting])


def _thin(ids: tuple[str, ...], dropout: float, generator: np.random.Generator) -> tuple[str, ...]:
    return tuple(i for i, number in zip(ids, generator.random(len(ids)), strict=True) if number >= dropout)

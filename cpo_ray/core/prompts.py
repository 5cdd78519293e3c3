"""Build the condition texts of the method from labels: y, (y, A_pos), (A_neg), (y, A_pos, A_neg) and ∅ (CPO, Eq. 10 and 11).

A text is joined by commas: the content prompt, the positive phrases, the negative phrases, each in hierarchy order.

One rule drops what exceeds a tokenizer's limit. The content prompt y stays whole. Attributes go one by one: the last one of the
polarity with more left goes first, so that both polarities stay represented. If both have equally many, a positive goes, since
c_all and c_pos differ by the negatives alone. The same attributes go from all texts of a sample, since the targets are made of
differences between its texts. Only if y alone is too long is it cut, after its last word that fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from cpo_ray.config import ConditionMixture
from cpo_ray.hierarchy import Hierarchy

#: Raise this version with every change that alters a text. It is part of the targets' address, so old shards are not reused.
TEMPLATE_VERSION = 1

#: Marks in `dropped` that the end of the content prompt was cut; attributes appear there as signed ids.
PROMPT_END = "prompt"

FORMS = ("null", "negative", "content", "content_positive", "all")


@dataclass(frozen=True)
class Labels:
    """The labels of one picture: its content prompt y and the attribute ids of A_pos and A_neg, without signs."""

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
    """Sort attribute ids into the order of the tree's file. Raises HierarchyError for an unknown id."""
    place = {attribute_id: number for number, attribute_id in enumerate(tree.attributes)}
    return tuple(sorted(ids, key=lambda attribute_id: place[tree.attribute(attribute_id).id]))


def condition_texts(
    labels: Labels, tree: Hierarchy, count_tokens: Callable[[str], int], token_limit: int
) -> tuple[ConditionTexts, tuple[str, ...]]:
    """Return the texts of a sample within `token_limit`, and what the module's rule dropped, in the order of dropping.

    `count_tokens` counts a text with its start and end tokens. `dropped` holds signed ids, and PROMPT_END if y was cut. Raises
    HierarchyError for an attribute or a pole that the tree does not have.
    """
    positive = [f"+{attribute_id}" for attribute_id in in_hierarchy_order(labels.positive_ids, tree)]
    negative = [f"-{attribute_id}" for attribute_id in in_hierarchy_order(labels.negative_ids, tree)]
    dropped: list[str] = []
    content = labels.prompt
    # The text of everything is the sample's longest text; the others are parts of it.
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
    """Return the condition of one picture at one step of stage 1: a form drawn by the mixture's shares, with some attributes left
    out.

    A form without any words, such as A_neg of a faultless picture, is the null condition "". Raises ValueError if all shares are
    0, and HierarchyError as `condition_texts` does.
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
    """Return the longest run of words from the start that fits. More words never take fewer tokens."""
    words = content.split()
    fitting = bisect_right(range(1, len(words) + 1), token_limit, key=lambda n: count_tokens(" ".join(words[:n])))
    return " ".join(words[:fitting])


def _thin(ids: tuple[str, ...], dropout: float, generator: np.random.Generator) -> tuple[str, ...]:
    return tuple(i for i, number in zip(ids, generator.random(len(ids)), strict=True) if number >= dropout)

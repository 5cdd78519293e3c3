"""Build the condition texts of the method from labels: y, (y, A_pos), (A_neg), (y, A_pos, A_neg) and ∅ (CPO, Eq. 10 and 11).

A text is joined by commas: the content prompt, the positive phrases, the negative phrases, each in hierarchy order.

One rule drops what exceeds a tokenizer's limit. Attributes go one by one until they take at most `ATTRIBUTE_SHARE` of the limit:
the last one of the polarity with more left goes first, so that both polarities stay represented. If both have equally many, a
positive goes, since c_all and c_pos differ by the negatives alone. If the text is still too long, the content prompt y is cut at
its end: after its last word that fits, or within a word that is none, as in languages without spaces. The same goes from all
texts of a sample, since the targets are made of differences between its texts. No prompt becomes empty.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from cpo_ray.config import ConditionMixture
from cpo_ray.hierarchy import Hierarchy

#: Raise this version with every change that alters a text. It is part of the targets' address, so old shards are not reused.
TEMPLATE_VERSION = 2

#: Attributes keep this share of a tokenizer's limit, however long the prompt is.
ATTRIBUTE_SHARE = 1 / 3
#: A word of more tokens is a text without spaces, which may be cut anywhere.
LONGEST_WORD = 16

#: Marks in `dropped` that the end of the content prompt was cut; attributes appear there as signed ids.
PROMPT_END = "prompt"

#: The zero-width joiner, which makes one picture of several, and the selector of its look.
_JOINERS = "\u200d\ufe0f"

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

    def fits(start: str) -> bool:
        return count_tokens(_join(start, positive + negative, tree)) <= token_limit

    # The text of everything is the sample's longest text; the others are parts of it.
    while not fits(content):
        attributes = count_tokens(_join(content, positive + negative, tree)) - count_tokens(content)
        if attributes > ATTRIBUTE_SHARE * token_limit:
            dropped.append((positive if len(positive) >= len(negative) else negative).pop())
        else:
            content = _cut(content, fits, count_tokens)
            dropped.append(PROMPT_END)
            break
    texts = ConditionTexts(
        content=content,
        positive=_join(content, positive, tree),
        negative=_join("", negative, tree),
        all=_join(content, positive + negative, tree),
    )
    return texts, tuple(dropped)


@dataclass(frozen=True)
class TextLosses:
    """What texts lose to a tokenizer's limit: prompts that are cut with their lost tokens, and attributes with their pictures."""

    texts: int = 0
    cut: int = 0
    tokens: int = 0
    pictures: int = 0
    attributes: int = 0


def text_losses(samples: Iterable[Labels], tree: Hierarchy, count_tokens: Callable[[str], int], token_limit: int) -> TextLosses:
    """Count what `condition_texts` leaves out of the texts of some samples. Raises HierarchyError as it does."""
    found = TextLosses()
    for labels in samples:
        texts, dropped = condition_texts(labels, tree, count_tokens, token_limit)
        attributes = sum(name != PROMPT_END for name in dropped)
        lost = count_tokens(labels.prompt) - count_tokens(texts.content) if PROMPT_END in dropped else 0
        found = TextLosses(
            found.texts + 1,
            found.cut + (PROMPT_END in dropped),
            found.tokens + lost,
            found.pictures + (attributes > 0),
            found.attributes + attributes,
        )
    return found


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


def _cut(content: str, fits: Callable[[str], bool], count_tokens: Callable[[str], int]) -> str:
    """Return the longest start of a text that fits, or its first character: whole words, and a part of a word that is none."""
    words = content.split()
    # More words never take fewer tokens.
    fitting = bisect_left(range(1, len(words) + 1), True, key=lambda n: not fits(" ".join(words[:n])))
    start, word = words[:fitting], words[fitting]
    if start and count_tokens(word) <= LONGEST_WORD:
        return " ".join(start)
    length = bisect_left(range(1, len(word) + 1), True, key=lambda n: not fits(" ".join([*start, word[:n]])))
    # A part of a word may take a token more than a longer part, and a mark belongs to the letter before it.
    while length and (not fits(" ".join([*start, word[:length]])) or _joined(word, length)):
        length -= 1
    return " ".join([*start, word[: length or not start]]).strip()


def _joined(word: str, place: int) -> bool:
    """Return whether the characters before and after a place are one for readers."""
    after = word[place : place + 1]
    return bool(after) and (unicodedata.combining(after) > 0 or after in _JOINERS or word[place - 1] == _JOINERS[0])


def _thin(ids: tuple[str, ...], dropout: float, generator: np.random.Generator) -> tuple[str, ...]:
    return tuple(i for i, number in zip(ids, generator.random(len(ids)), strict=True) if number >= dropout)

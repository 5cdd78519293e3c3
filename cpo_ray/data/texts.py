"""Say how many texts lose how much to the limit of the tokenizers, before anything is trained."""

from __future__ import annotations

from typing import NamedTuple

from cpo_ray.core.prompts import ATTRIBUTE_SHARE, TextLosses, text_losses
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import Hierarchy
from cpo_ray.models.base import Tokens

#: Texts that are looked at; counting their tokens takes seconds.
MOST_TEXTS = 2000


class ToldOfTexts(NamedTuple):
    """The fate of texts as a sentence, and whether any of them loses something."""

    sentence: str
    loses: bool


def told_of_texts(dataset: AnnotatedDataset, tree: Hierarchy, tokens: Tokens) -> ToldOfTexts:
    """Count the tokens of a data set's texts, or of 2,000 of them. Raises HierarchyError for labels of another tree."""
    looked_at = dataset.ids[:: -(-len(dataset.ids) // MOST_TEXTS)]
    lost = text_losses((dataset.labels(name) for name in looked_at), tree, *tokens)
    every = len(looked_at) == len(dataset.ids)
    told = f"the texts of {lost.texts} pictures" if every else f"{lost.texts} texts that were looked at"
    if not lost.cut and not lost.attributes:
        return ToldOfTexts(f"{told} fit into {tokens.limit} tokens", False)
    return ToldOfTexts(f"of {told}, with at most {tokens.limit} tokens, {_losses(lost)}", True)


def _losses(lost: TextLosses) -> str:
    parts = []
    if lost.cut:
        parts.append(f"{lost.cut} prompts lose their end, {lost.tokens / lost.cut:.0f} tokens on average")
    if lost.pictures:
        parts.append(f"{lost.pictures} pictures lose attributes, {lost.attributes / lost.pictures:.1f} on average")
    return f"{' and '.join(parts)}; attributes keep {ATTRIBUTE_SHARE:.0%} of the room, and shorter prompts lose nothing"

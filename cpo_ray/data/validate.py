"""Check one picture and its labels before they become a row of an annotated shard."""

from __future__ import annotations

from typing import Any, NamedTuple

from cpo_ray.core.prompts import Labels, in_hierarchy_order
from cpo_ray.core.splits import Split
from cpo_ray.data.picture import PictureError, decode
from cpo_ray.hierarchy import Hierarchy


class Reason(NamedTuple):
    """Why something was set aside: its kind, for counting, and a sentence."""

    kind: str
    sentence: str


class RowError(ValueError):
    """One sample cannot be used; `reasons` lists everything that is wrong with it."""

    def __init__(self, reasons: list[Reason]) -> None:
        super().__init__("\n".join(reason.sentence for reason in reasons))
        self.reasons = reasons


class Origin(NamedTuple):
    """Who labelled a picture (file, back end, model), and the split that its source has put it into."""

    provenance: str
    split: Split | None = None


def annotated_row(
    sample_id: str, image: bytes, labels: Labels, origin: Origin, tree: Hierarchy, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the row of `schema.ANNOTATED` for one sample, with its attribute ids in hierarchy order.

    `size` is (width, height) from `picture.decode`; without it the picture is decoded here. Raises RowError if the id or the
    prompt is empty or not valid Unicode, the labels are impossible under the tree, or the picture cannot be used (see
    `picture.decode`).
    """
    reasons = _text_reasons("id", sample_id) + _text_reasons("prompt", labels.prompt)
    sentences = tree.problems(labels.positive_ids, labels.negative_ids, labels.prompt)
    reasons += [Reason("impossible labels", sentence) for sentence in sentences]
    width, height = size or (0, 0)
    try:
        if size is None:
            width, height = decode(image).size
    except PictureError as error:
        reasons.append(Reason("unusable picture", str(error)))
    if reasons:
        raise RowError(reasons)
    return {
        "id": sample_id,
        "image": image,
        "prompt": labels.prompt.strip(),
        "positive_ids": in_hierarchy_order(labels.positive_ids, tree),
        "negative_ids": in_hierarchy_order(labels.negative_ids, tree),
        "width": width,
        "height": height,
        "provenance": origin.provenance,
        "hierarchy_hash": tree.content_hash,
        "split": origin.split,
    }


def _text_reasons(name: str, text: str) -> list[Reason]:
    if not text.strip():
        return [Reason(f"empty {name}", f"the {name} is empty")]
    # JSON can spell half of a surrogate pair, which UTF-8 cannot hold.
    if any("\ud800" <= character <= "\udfff" for character in text):
        return [Reason(f"broken {name}", f"the {name} {text!r} is not valid Unicode")]
    return []

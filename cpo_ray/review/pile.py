"""The pictures that one reviewer goes through: their order, their labels by root, and the verdicts so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cpo_ray.config.review import ReviewSettings
from cpo_ray.core.randomness import hash_fraction
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import Hierarchy, load_hierarchy
from cpo_ray.review.judgements import JudgementFile, ReviewError, Verdict, judgement_file, signed_ids


def reviewed_ids(dataset: AnnotatedDataset, sample: int | None, seed: int) -> tuple[str, ...]:
    """Return all pictures in the order of the shards, or `sample` of them, chosen and ordered by the seed alone.

    A larger sample begins with the smaller one, so reviewers with different samples still judge common pictures.
    """
    if sample is None:
        return dataset.ids
    return tuple(sorted(dataset.ids, key=lambda name: hash_fraction(f"review/{seed}/{name}"))[:sample])


def open_pile(settings: ReviewSettings, reviewer: str, sample: int | None) -> Pile:
    """Open a reviewer's pictures with the verdicts so far. Raises ReviewError, DataError and HierarchyError."""
    tree, dataset = load_hierarchy(settings.hierarchy), AnnotatedDataset.open(settings.annotations)
    dataset.check_hierarchy(tree)
    kept = JudgementFile(judgement_file(settings.judgements, reviewer), dataset, tree)
    return Pile(dataset, tree, reviewed_ids(dataset, sample, settings.seed), kept)


class Pile:
    """One reviewer's pictures. Every returned value is ready for JSON and holds nothing of other reviewers."""

    def __init__(self, dataset: AnnotatedDataset, tree: Hierarchy, ids: Sequence[str], kept: JudgementFile) -> None:
        self._dataset, self._tree, self._ids, self._kept = dataset, tree, ids, kept

    def sentence(self) -> str:
        """Return the reviewer's progress as a sentence for a terminal."""
        finished = sum(map(self._is_finished, self._ids))
        return f"{self._kept.path.stem}: {finished} of {len(self._ids)} pictures finished; judgements go to {self._kept.path}"

    def overview(self) -> dict[str, Any]:
        """Return the reviewer, the finished pictures, and the number of each verdict."""
        given = Counter(verdict for sample in self._ids for verdict in self._kept.verdicts.get(sample, {}).values())
        return {
            "reviewer": self._kept.path.stem,
            "hierarchy": self._tree.name,
            "finished": [self._is_finished(sample) for sample in self._ids],
            "verdicts": {verdict: given[verdict] for verdict in ("confirmed", "rejected", "unsure")},
        }

    def picture(self, number: int) -> dict[str, Any]:
        """Return one picture with its labels in the tree's order. Raises ReviewError for a number beyond the pictures."""
        sample = self._sample(number)
        labels, verdicts = self._dataset.labels(sample), self._kept.verdicts.get(sample, {})
        width, height = self._dataset.size(sample)
        roots: dict[str, dict[str, Any]] = {
            root.id: {"label": root.label, "positive": [], "negative": []} for root in self._tree.roots
        }
        for signed in signed_ids(labels):
            side = "positive" if signed[0] == "+" else "negative"
            roots[self._tree.attribute(signed[1:]).root_id][side].append(self._label(signed, verdicts))
        shown = [root for root in roots.values() if root["positive"] or root["negative"]]
        return {"id": sample, "prompt": labels.prompt, "width": width, "height": height, "roots": shown}

    def image(self, number: int) -> bytes:
        """Return the encoded picture as stored in the shards. Raises ReviewError for a number beyond the pictures."""
        return self._dataset.images([self._sample(number)])[0]

    def judge(self, number: int, sample: str, verdicts: Mapping[str, Verdict]) -> bool:
        """Keep verdicts on a picture's labels and return whether the picture is finished.

        `sample` is the id that the reviewer saw under that number. Raises ReviewError if the number now means another picture or
        the picture lacks one of these labels, and OSError if the disk does not take the verdicts.
        """
        if sample != self._sample(number):
            raise ReviewError(f"picture {number + 1} is no longer {sample!r}, since the review was started anew; reload the page")
        unknown = [signed for signed in verdicts if signed not in signed_ids(self._dataset.labels(sample))]
        if unknown:
            raise ReviewError(f"{sample!r} has no label {unknown[0]!r}; reload the page")
        self._kept.append(sample, verdicts)
        return self._is_finished(sample)

    def close(self) -> None:
        """Release the reviewer's file for other processes."""
        self._kept.close()

    def _label(self, signed: str, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
        attribute = self._tree.attribute(signed[1:])
        nodes = {node.id: node.label for node in self._tree.root(attribute.root_id).nodes()}
        return {
            "id": signed,
            "phrase": self._tree.phrase(signed),
            "name": attribute.label,
            "path": [nodes[name] for name in attribute.path],
            "definition": attribute.definition,
            "cue": attribute.cue,
            "verdict": verdicts.get(signed, "open"),
        }

    def _sample(self, number: int) -> str:
        if not 0 <= number < len(self._ids):
            raise ReviewError(f"there is no picture {number + 1}; the review has {len(self._ids)}")
        return self._ids[number]

    def _is_finished(self, sample: str) -> bool:
        return len(self._kept.verdicts.get(sample, {})) == len(signed_ids(self._dataset.labels(sample)))

"""What a review found: accuracy of the labels, agreement of reviewers, and likeness of two back ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpo_ray.core.prompts import Labels
from cpo_ray.core.statistics import Interval, bootstrap_interval, intersection_over_union
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.hierarchy import Attribute, Hierarchy
from cpo_ray.review import agreement
from cpo_ray.review.judgements import Verdicts, signed_ids

#: Labels of fewer pictures, or of a smaller share, are too rare to say which labels occur together.
FEWEST = 5
RAREST = 0.02
#: Number of most frequent labels that are compared in pairs.
PAIRED = 200


class Votes(NamedTuple):
    """The number of reviewers who gave each verdict on one label."""

    confirmed: int
    rejected: int
    unsure: int


@dataclass(frozen=True)
class Trust:
    """The judgements on the labels of one root, of one reviewer, or of all.

    `accuracy` is confirmed / (confirmed + rejected), as in the paper's Table S23. `raw` and `alpha` cover the labels that several
    reviewers judged; they are None if there are no such labels or the statistic is undefined.
    """

    name: str
    votes: Votes
    accuracy: Interval | None
    raw: float | None
    alpha: Interval | None


@dataclass(frozen=True)
class Rejected:
    """A label and the pictures in which it was rejected, most rejections first."""

    signed_id: str
    votes: Votes
    pictures: Mapping[str, Votes]


@dataclass(frozen=True)
class Pair:
    """Two labels: the number of pictures with both, the number expected if the labels were independent, and φ."""

    labels: tuple[str, str]
    both: int
    expected: float
    phi: float


@dataclass(frozen=True)
class Cooccurrence:
    """φ (L, L) of the most frequent labels, and the pairs of different attributes that are furthest from chance."""

    labels: Sequence[str]
    phi: NDArray[np.float64]
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Likeness:
    """How alike two back ends label the same pictures, for one root or all: mean overlap and Cohen's kappa."""

    name: str
    overlap: Interval | None
    kappa: Interval | None


PictureVotes = dict[str, dict[str, Votes]]


def votes_of(reviews: Iterable[Verdicts]) -> PictureVotes:
    """Return picture → signed id → votes, summed over all reviews."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for verdicts in reviews:
        for sample, given in verdicts.items():
            for signed, verdict in given.items():
                counts.setdefault(sample, {}).setdefault(signed, Counter())[verdict] += 1
    return {
        sample: {signed: Votes(c["confirmed"], c["rejected"], c["unsure"]) for signed, c in of.items()}
        for sample, of in counts.items()
    }


def trust_by_root(reviews: Iterable[Verdicts], tree: Hierarchy) -> list[Trust]:
    """Return one row per root, and a last row for all labels."""
    votes = votes_of(reviews)
    by_root: dict[str, list[list[Votes]]] = {root.id: [] for root in tree.roots}
    for of in votes.values():
        pieces: dict[str, list[Votes]] = {}
        for signed, vote in of.items():
            pieces.setdefault(tree.attribute(signed[1:]).root_id, []).append(vote)
        for root_id, piece in pieces.items():
            by_root[root_id].append(piece)
    return [*(trust(root.label, by_root[root.id]) for root in tree.roots), trust("all", by_picture(votes))]


def by_picture(votes: PictureVotes) -> list[list[Votes]]:
    """Return the votes of each picture as a list."""
    return [list(of.values()) for of in votes.values()]


def trust(name: str, pictures: Sequence[Sequence[Votes]]) -> Trust:
    """Return the row for these votes, given as a list per picture."""
    confirmed = [sum(vote.confirmed for vote in of) for of in pictures]
    rejected = [sum(vote.rejected for vote in of) for of in pictures]
    unsure = sum(vote.unsure for of in pictures for vote in of)
    pairs = np.array(
        [agreement.coincidences([v.confirmed for v in of], [v.rejected for v in of]).sum(axis=0) for of in pictures]
    ).reshape(-1, 3)
    return Trust(
        name,
        Votes(sum(confirmed), sum(rejected), unsure),
        agreement.wilson_interval(confirmed, np.add(confirmed, rejected)),
        float(agreement.raw_agreement(pairs.sum(axis=0))) if pairs.any() else None,
        agreement.over_pictures(pairs, agreement.krippendorff_alpha),
    )


def rejected_labels(reviews: Iterable[Verdicts]) -> list[Rejected]:
    """Return every label that any reviewer rejected, most rejections first."""
    by_label: dict[str, dict[str, Votes]] = {}
    for sample, of in votes_of(reviews).items():
        for signed, vote in of.items():
            by_label.setdefault(signed, {})[sample] = vote
    found = []
    for signed, of in by_label.items():
        where = {sample: vote for sample, vote in sorted(of.items(), key=lambda item: -item[1].rejected) if vote.rejected}
        if where:
            found.append(Rejected(signed, Votes(*map(sum, zip(*of.values(), strict=True))), where))
    return sorted(found, key=lambda label: (-label.votes.rejected, label.signed_id))


def frequencies(dataset: AnnotatedDataset) -> Counter[str]:
    """Count the pictures that have each signed id."""
    return Counter(signed for sample in dataset.ids for signed in signed_ids(dataset.labels(sample)))


def cooccurrence(dataset: AnnotatedDataset, tree: Hierarchy, most: int = 24, pairs: int = 16) -> Cooccurrence | None:
    """Return which labels occur together and which apart; None if fewer than two labels are frequent enough."""
    counts = frequencies(dataset)
    fewest, pictures = max(FEWEST, RAREST * len(dataset.ids)), len(dataset.ids)
    frequent = [signed for signed, count in counts.most_common(PAIRED) if fewest <= count < pictures]
    if len(frequent) < 2:
        return None
    given = np.array([[signed in held for signed in frequent] for held in map(set, _all_labels(dataset))])
    phi = agreement.correlation(given)
    found = [
        Pair(
            (frequent[i], frequent[j]),
            int((given[:, i] & given[:, j]).sum()),
            counts[frequent[i]] * counts[frequent[j]] / len(given),
            float(phi[i, j]),
        )
        for i, j in _furthest(phi, frequent, pairs)
    ]
    order = {signed: place for place, signed in enumerate(s for a in tree.attributes.values() for s in a.poles)}
    shown = sorted(range(min(most, len(frequent))), key=lambda i: order[frequent[i]])
    return Cooccurrence([frequent[i] for i in shown], phi[np.ix_(shown, shown)], found)


def _furthest(phi: NDArray[np.float64], labels: Sequence[str], count: int) -> list[tuple[int, int]]:
    """Return the indices of the pairs furthest from chance, without pairs of poles of one attribute, which exclude each other."""
    rows, columns = np.triu_indices(len(labels), 1)
    names = np.array([signed[1:] for signed in labels])
    apart = names[rows] != names[columns]
    rows, columns = rows[apart], columns[apart]
    best = np.argsort(-np.abs(phi[rows, columns]), kind="stable")[:count]
    return [(int(rows[i]), int(columns[i])) for i in best]


def likeness_by_root(first: AnnotatedDataset, second: AnnotatedDataset, tree: Hierarchy) -> tuple[int, list[Likeness]]:
    """Compare two data sets: return the number of common pictures, and a row per root and one for all labels over these pictures.

    Overlap is the number of labels that both give divided by the number that either gives, over pictures with any. Kappa covers
    all labels that apply to the first data set's content prompt. Raises DataError if no picture is common or one differs in size.
    """
    others = set(second.ids)
    common = [sample for sample in first.ids if sample in others]
    if not common:
        raise DataError(f"no picture of {first.folder} is in {second.folder}; give annotations of the same pictures")
    for sample in common:
        if first.size(sample) != second.size(sample):
            raise DataError(f"{sample!r} is another picture in {second.folder} than in {first.folder}: their sizes differ")
    labels = [(first.labels(sample), second.labels(sample)) for sample in common]
    rows = [_likeness(root.label, labels, list(root.walk())) for root in tree.roots]
    return len(common), [*rows, _likeness("all", labels, list(tree.attributes.values()))]


def _likeness(name: str, labels: Sequence[tuple[Labels, Labels]], attributes: Sequence[Attribute]) -> Likeness:
    overlaps, counts = [], []
    known = {signed for attribute in attributes for signed in attribute.poles}
    conditional = [attribute for attribute in attributes if attribute.prompt_has_any]
    for one, other in labels:
        a, b = known & set(signed_ids(one)), known & set(signed_ids(other))
        barred = sum(len(attribute.poles) for attribute in conditional if not attribute.applies_to(one.prompt))
        counts.append([len(a & b), len(a - b), len(b - a), max(len(known) - barred - len(a | b), 0)])
        if a | b:
            overlaps.append(intersection_over_union(a, b))
    overlap = bootstrap_interval(overlaps, seed=0) if overlaps else None
    return Likeness(name, overlap, agreement.over_pictures(np.array(counts, dtype=np.float64), agreement.cohen_kappa))


def _all_labels(dataset: AnnotatedDataset) -> list[tuple[str, ...]]:
    return [signed_ids(dataset.labels(sample)) for sample in dataset.ids]

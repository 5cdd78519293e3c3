"""Measured quality of the pictures of several models, made from the same prompts and noise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cpo_ray.core.statistics import (
    Interval,
    bootstrap_interval,
    format_interval,
    format_number,
    frechet_distance,
    mean_by_attribute,
    mean_by_root,
    paired_difference,
)
from cpo_ray.hierarchy import Hierarchy

Pictures = Sequence[NDArray[np.uint8]]


class Labelled(Protocol):
    """Whatever an annotator returns for one picture: attribute ids, without sign."""

    @property
    def positive_ids(self) -> tuple[str, ...]: ...

    @property
    def negative_ids(self) -> tuple[str, ...]: ...


class Domain(Protocol):
    """All that measuring needs to know of a domain.

    The three belong together: a count of negatives falls for noise as well as for good pictures, and only content and distance
    tell the two apart.  A domain that has not all of them gets a report with pictures and without numbers.
    """

    def annotate(self, pictures: Pictures, prompts: Sequence[str]) -> Sequence[Labelled]:
        """The attributes found in each picture, read from the picture; the prompt tells which ones apply."""

    def content_hits(self, pictures: Pictures, prompts: Sequence[str]) -> NDArray[np.bool_]:
        """(N,): does the picture show everything that its prompt names?"""

    def features(self, pictures: Pictures) -> NDArray[np.float64]:
        """(N, D) for the Fréchet distance."""

    def good_features(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """(M, D) of pictures of these prompts as they ought to be."""


@dataclass(frozen=True)
class Labels:
    """The attributes found in one picture."""

    positive_ids: tuple[str, ...]
    negative_ids: tuple[str, ...]


@dataclass(frozen=True)
class ModelResult:
    """One model, measured; `negatives` is #A_neg, the mean number of negative attributes in a picture."""

    negatives: Interval
    change: Interval | None
    """Paired difference of #A_neg to the base; None for the base itself."""
    content: Interval
    """Share of pictures that show all their prompt names."""
    distance: float
    """Squared Fréchet distance to good pictures."""
    by_attribute: dict[str, float]
    by_root: dict[str, float]
    labels: tuple[Labels, ...]


@dataclass(frozen=True)
class EvaluationResult:
    """All models of one evaluation, by name in the order given, and the name that changes are counted from."""

    base: str
    models: dict[str, ModelResult]

    def as_json(self) -> str:
        """The result as JSON, one object with the fields of the dataclasses."""
        return json.dumps(asdict(self), indent=1) + "\n"


def evaluate_models(
    pictures: Mapping[str, Pictures],
    prompts: Sequence[str],
    domain: Domain,
    tree: Hierarchy,
    *,
    base: str = "base",
    seed: int = 0,
) -> EvaluationResult:
    """Measure every model's pictures; picture i of each was made from `prompts[i]`, the content alone, and the same noise.

    `seed` is that of the bootstrap.  Raises ValueError where the base is missing or a model has another number of pictures than
    there are prompts.
    """
    if base not in pictures:
        raise ValueError(f"there are no pictures of the base {base!r} among {sorted(pictures)}; changes are counted from it")
    for name, made in pictures.items():
        if len(made) != len(prompts):
            raise ValueError(f"model {name!r} has {len(made)} pictures for {len(prompts)} prompts; there must be one for each")
    good = domain.good_features(prompts)
    found = {name: _labels(domain.annotate(made, prompts)) for name, made in pictures.items()}
    counts = {name: [len(label.negative_ids) for label in labels] for name, labels in found.items()}
    models = {}
    for name, made in pictures.items():
        negatives = [label.negative_ids for label in found[name]]
        models[name] = ModelResult(
            negatives=bootstrap_interval(counts[name], seed),
            change=None if name == base else paired_difference(counts[name], counts[base], seed),
            content=bootstrap_interval(domain.content_hits(made, prompts), seed),
            distance=frechet_distance(domain.features(made), good),
            by_attribute=mean_by_attribute(negatives, tree),
            by_root=mean_by_root(negatives, tree),
            labels=found[name],
        )
    return EvaluationResult(base, models)


def table(result: EvaluationResult) -> str:
    """The result as aligned plain text, one model to a line."""
    heads, rows = _cells(result)
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    head, *body = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in (heads, *rows))
    return "\n".join([head, "  ".join("─" * width for width in widths), *body])


def card_section(result: EvaluationResult, name: str) -> str:
    """What a model card says of the model `name` beside the base: Markdown."""
    heads, rows = _cells(result)
    return evaluation_section("test", len(result.models[name].labels), heads, [r for r in rows if r[0] in (result.base, name)])


def evaluation_section(split: str, pictures: int, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A model card's section of two models, measured on so many pictures of that split's prompts: Markdown."""
    return (
        "## Evaluation\n\n"
        f"{pictures} pictures, of the same {split} prompts and noise for both models. "
        "#A_neg: the mean number of negative attributes found in a picture, with its 95 % bootstrap interval; content: the share "
        "of pictures that show what was asked for; distance: squared Fréchet distance to good pictures.\n\n"
        + "".join(f"| {' | '.join(line)} |\n" for line in (heads, ("---",) * len(heads), *rows))
    )


def _cells(result: EvaluationResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The heads of the columns, and a row for each model."""
    heads = ("model", "#A_neg [95 %]", f"change vs {result.base} [95 %]", "content", "distance")
    return heads, [
        (
            name,
            format_interval(model.negatives),
            format_interval(model.change, signed=True) if model.change else "",
            f"{model.content.mean:.3f}",
            format_number(model.distance),
        )
        for name, model in result.models.items()
    ]


def _labels(annotations: Iterable[Labelled]) -> tuple[Labels, ...]:
    return tuple(Labels(tuple(a.positive_ids), tuple(a.negative_ids)) for a in annotations)

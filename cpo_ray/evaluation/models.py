"""The models of a run beside each other: the same prompts and noise for the base, the expert and everything that was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cpo_ray.config import Config
from cpo_ray.core.prompts import Labels, condition_texts, in_hierarchy_order
from cpo_ray.evaluation.domain import Domain, Picture
from cpo_ray.evaluation.gate import LONG
from cpo_ray.evaluation.generate import generate_into, generation_job
from cpo_ray.evaluation.measure import Comparison, compare, measure
from cpo_ray.evaluation.pictures import StoredPictures
from cpo_ray.evaluation.readings import Asked, read_models
from cpo_ray.evaluation.rounds import Round
from cpo_ray.evaluation.scorers.base import open_scorers
from cpo_ray.hierarchy import Hierarchy

BASE = "base"
#: The expert is no rival of the trained models: it is told what is good, and refused what is bad.
EXPERT = "expert, told what is good"


def short_name(model: str) -> str:
    """Return what files and MLflow's pictures of a model are called."""
    return model.partition(",")[0]


def draw_models(
    config: Config,
    tree: Hierarchy,
    asked: Round,
    adapters: Mapping[str, Path],
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, StoredPictures]:
    """The pictures of the base and of each adapter, by name; the one called EXPERT is told the attributes too.

    They lie below `folder`, and those that are there already are not drawn again. `on_progress` is told (pictures there, all
    pictures).
    """
    jobs = {BASE: generation_job(config, None, asked.prompts, asked.seeds)}
    for name, adapter in adapters.items():
        if name == EXPERT:
            told = [condition_texts(request, tree, lambda _: 0, LONG)[0].positive for request in asked.requests]
            jobs[name] = generation_job(config, adapter, told, asked.seeds, _refusals(asked.requests, tree))
        else:
            jobs[name] = generation_job(config, adapter, asked.prompts, asked.seeds)
    return generate_into({name: folder / short_name(name) for name in jobs}, jobs, config.evaluation, on_progress)


def compare_models(
    config: Config, domain: Domain, asked: Round, pictures: Mapping[str, Sequence[Picture]], folder: Path
) -> Comparison | None:
    """Every model's scores beside the base's; None where the configuration names nothing to score by.

    `folder` keeps what the models of scorers have read from the pictures.
    """
    scorers = open_scorers(config)
    if not scorers:
        return None
    readings, left_out = read_models(
        config, scorers, {name: Asked(made, asked.prompts) for name, made in pictures.items()}, folder
    )
    having = [scorer for scorer in scorers if scorer.name not in left_out]
    measured = {name: measure(made, asked.prompts, domain, having, readings[name]) for name, made in pictures.items()}
    found = compare(measured, having, BASE)
    return replace(found, left_out=left_out | found.left_out)


def _refusals(requests: Sequence[Labels], tree: Hierarchy) -> list[str]:
    """Negative prompts with every bad attribute that the domain's request does not list as good alone: A_neg of Table S6, A."""
    texts = []
    for request in requests:
        refused = request.negative_ids or tuple(a for a in request.positive_ids if tree.attributes[a].negative is not None)
        texts.append(", ".join(tree.phrase(f"-{a}") for a in in_hierarchy_order(refused, tree)))
    return texts

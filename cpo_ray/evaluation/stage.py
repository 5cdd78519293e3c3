"""The evaluation of a run: which pictures are drawn for whom, what is measured, and where the report goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cpo_ray.config import Config, dump
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.evaluate import Domain, EvaluationResult, evaluate_models, table
from cpo_ray.evaluation.generate import GenerationJob, Picture, generate_many
from cpo_ray.evaluation.metrics import Interval, bootstrap_interval, intersection_over_union
from cpo_ray.evaluation.report import Report, write_report
from cpo_ray.prompts import Labels, condition_texts, in_hierarchy_order
from cpo_ray.toy.domain import ToyDomain
from hierarchy import Hierarchy

#: Seeds of the pictures that the gate looks at; the counted ones start at `evaluation.seed`.
GATE_SEED = 50_000
GATE_PICTURES = 48
LONG = 10**9  # generation leaves cutting to the pipeline's own tokenizer


@dataclass(frozen=True)
class Obedience:
    """How well the expert does what its attributes say, per configuration A, B, C of Table S6: intersection over union."""

    positive: dict[str, Interval]
    negative: dict[str, Interval]

    @property
    def gap(self) -> float:
        """IoU_neg(C) - IoU_neg(A): negatives must come when they are asked for, and stay away when they are refused."""
        return self.negative["C"].mean - self.negative["A"].mean

    def table(self) -> str:
        """One line per configuration."""
        lines = ["configuration                              IoU_pos  IoU_neg"]
        meaning = {"A": "y + A_pos, A_neg as negative prompt", "B": "y + A_pos", "C": "y + A_pos + A_neg"}
        lines += [f"{k}: {meaning[k]:<40}{self.positive[k].mean:.2f}     {self.negative[k].mean:.2f}" for k in "ABC"]
        return "\n".join(lines)


def domain_of(config: Config) -> Domain | None:
    """What can measure the pictures; None where only people can look at them."""
    return ToyDomain() if config.model.base == "toy" else None


def evaluation_requests(config: Config, dataset: AnnotatedDataset, domain: Domain | None) -> list[Labels]:
    """Prompts that are counted, with the attributes that the expert is asked for: none of them was trained or tuned on."""
    count = config.evaluation.pictures
    if isinstance(domain, ToyDomain):
        requests = domain.requests("test")
    else:
        requests = [dataset.labels(i) for i in dataset.split("test")] or [dataset.labels(i) for i in dataset.ids]
    return [requests[i % len(requests)] for i in range(count)]


def obedience(config: Config, dataset: AnnotatedDataset, tree: Hierarchy, adapter: Path, domain: Domain) -> Obedience:
    """Ask the expert for the labels of validation pictures in the three ways of Table S6, and see what comes."""
    ids = dataset.split("validation") or dataset.ids
    requests = [dataset.labels(ids[i % len(ids)]) for i in range(min(GATE_PICTURES, config.evaluation.pictures))]
    seeds = range(GATE_SEED, GATE_SEED + len(requests))
    texts = [condition_texts(r, tree, lambda _: 0, LONG)[0] for r in requests]
    jobs = {
        "A": _job(config, adapter, [t.positive for t in texts], seeds, [t.negative for t in texts]),
        "B": _job(config, adapter, [t.positive for t in texts], seeds),
        "C": _job(config, adapter, [t.all for t in texts], seeds),
    }
    pictures = generate_many(jobs, config.evaluation)
    prompts = [r.prompt for r in requests]
    found = {name: domain.annotate(made, prompts) for name, made in pictures.items()}

    def agreement(side: str) -> dict[str, Interval]:
        return {
            name: bootstrap_interval(
                [intersection_over_union(getattr(r, side), getattr(f, side)) for r, f in zip(requests, labels, strict=True)],
                seed=0,
            )
            for name, labels in found.items()
        }

    return Obedience(agreement("positive_ids"), agreement("negative_ids"))


def evaluate_run(
    config: Config,
    dataset: AnnotatedDataset,
    tree: Hierarchy,
    expert: Path,
    adapters: Mapping[str, Path],
    provenance: Mapping[str, str],
) -> tuple[EvaluationResult | None, Path]:
    """Draw the same prompts and noise with the base, the expert and every trained adapter; measure; write the report.

    Returns the measurements (None where the domain has nothing to measure with) and the report's path. Files go to
    `evaluation/` in the run's folder: report.html, result.json, and one grid of pictures per model.
    """
    domain, folder = domain_of(config), config.folder.absolute() / "evaluation"
    requests = evaluation_requests(config, dataset, domain)
    prompts = [r.prompt for r in requests]
    seeds = range(config.evaluation.seed, config.evaluation.seed + len(prompts))
    texts = [condition_texts(r, tree, lambda _: 0, LONG)[0] for r in requests]
    jobs = {"base": _job(config, None, prompts, seeds)}
    jobs["expert, told what is good"] = _job(config, expert, [t.positive for t in texts], seeds, _refusals(requests, tree))
    jobs |= {name: _job(config, adapter, prompts, seeds) for name, adapter in adapters.items()}
    pictures = generate_many(jobs, config.evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in pictures.items():
        Image.fromarray(grid(made[:64], 8)).save(folder / f"{name.split(',')[0]}.png")
    result = None
    if domain is not None:
        result = evaluate_models(pictures, prompts, domain, tree)
        (folder / "result.json").write_text(result.as_json())
        (folder / "table.txt").write_text(table(result) + "\n")
    curves = {name: path for name in adapters if name != "sft" and (path := config.folder / name / "metrics.jsonl").exists()}
    report = Report(
        title=f"CPO run {config.run.name}",
        pictures=pictures,
        prompts=prompts,
        tree=tree,
        featured=config.preference.objective if config.preference.objective in adapters else None,
        result=result,
        curves=curves,
        settings=dump(config),
        provenance=provenance,
    )
    return result, write_report(report, folder / "report.html")


def grid(pictures: Sequence[Picture], columns: int) -> Picture:
    """Pictures of one size side by side, (rows·H, columns·W, 3); a last row that is not full is filled with white."""
    rows = [list(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    rows[-1] += [np.full_like(pictures[0], 255)] * (columns - len(rows[-1]))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def _refusals(requests: Sequence[Labels], tree: Hierarchy) -> list[str]:
    """Negative prompts with every bad attribute that the domain's request does not list as good alone: A_neg of Table S6, A."""
    texts = []
    for request in requests:
        refused = request.negative_ids or tuple(a for a in request.positive_ids if tree.attributes[a].negative is not None)
        texts.append(", ".join(tree.phrase(f"-{a}") for a in in_hierarchy_order(refused, tree)))
    return texts


def _job(
    config: Config, adapter: Path | None, prompts: Sequence[str], seeds: Sequence[int], negative: Sequence[str] = ()
) -> GenerationJob:
    settings = config.evaluation
    return GenerationJob(
        model=config.model,
        adapter=adapter,
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        negative_prompts=tuple(negative) or ("",) * len(prompts),
        inference_steps=settings.inference_steps,
        guidance_scale=settings.guidance_scale,
        batch=settings.batch,
    )

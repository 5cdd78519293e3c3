"""The evaluation of a run: which pictures are drawn for whom, what is measured, and where the report goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from cpo_ray.config import Config, dump
from cpo_ray.core.files import write_text
from cpo_ray.core.prompts import Labels, condition_texts, in_hierarchy_order
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.evaluation.gate import LONG, Obedience
from cpo_ray.evaluation.generate import generate_many, generation_job, grid
from cpo_ray.evaluation.measure import Domain, EvaluationResult, evaluate_models, table
from cpo_ray.evaluation.report import RunReport, write_report
from cpo_ray.hierarchy import Hierarchy
from cpo_ray.objectives import objective_of


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


def evaluate_run(
    config: Config,
    dataset: AnnotatedDataset,
    tree: Hierarchy,
    expert: Path,
    adapters: Mapping[str, Path],
    provenance: Mapping[str, str],
    obedience: Obedience | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[EvaluationResult | None, Path]:
    """Draw the same prompts and noise with the base, the expert and every trained adapter; measure; write the report.

    Returns the measurements (None where the domain has nothing to measure with) and the report's path. Files go to
    `evaluation/` in the run's folder: report.html, result.json, and one grid of pictures per model.  `on_progress` is told
    (pictures there, all pictures).
    """
    domain, folder = domain_of(config), config.folder.absolute() / "evaluation"
    requests = evaluation_requests(config, dataset, domain)
    prompts = [r.prompt for r in requests]
    seeds = range(config.evaluation.seed, config.evaluation.seed + len(prompts))
    texts = [condition_texts(r, tree, lambda _: 0, LONG)[0] for r in requests]
    jobs = {"base": generation_job(config, None, prompts, seeds)}
    told, refused = [t.positive for t in texts], _refusals(requests, tree)
    jobs["expert, told what is good"] = generation_job(config, expert, told, seeds, refused)
    jobs |= {name: generation_job(config, adapter, prompts, seeds) for name, adapter in adapters.items()}
    pictures = generate_many(jobs, config.evaluation, on_progress)
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in pictures.items():
        Image.fromarray(grid(made[:64], 8)).save(folder / f"{name.split(',')[0]}.png")
    result = None
    if domain is not None:
        result = evaluate_models(pictures, prompts, domain, tree)
        write_text(folder / "result.json", result.as_json())
        write_text(folder / "table.txt", table(result) + "\n")
    trainings = config.preference.trainings
    curves = {
        name: path
        for name in adapters
        if not objective_of(trainings[name]).supervised and (path := config.folder / name / "metrics.jsonl").exists()
    }
    featured = next(iter(trainings))
    report = RunReport(
        title=f"CPO run {config.run.name}",
        pictures=pictures,
        prompts=prompts,
        tree=tree,
        featured=featured if featured in adapters else None,
        result=result,
        curves=curves,
        settings=dump(config),
        provenance=provenance,
        obedience=obedience,
    )
    return result, write_report(report, folder / "report.html")


def _refusals(requests: Sequence[Labels], tree: Hierarchy) -> list[str]:
    """Negative prompts with every bad attribute that the domain's request does not list as good alone: A_neg of Table S6, A."""
    texts = []
    for request in requests:
        refused = request.negative_ids or tuple(a for a in request.positive_ids if tree.attributes[a].negative is not None)
        texts.append(", ".join(tree.phrase(f"-{a}") for a in in_hierarchy_order(refused, tree)))
    return texts

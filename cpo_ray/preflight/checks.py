"""The checks of `--check`: can a run with this configuration start here, and if not, what is missing?

Nothing is trained, downloaded or written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from cpo_ray.config import Config, ConfigError, Optimization
from cpo_ray.config.optimization import missing_package
from cpo_ray.core.splits import in_training
from cpo_ray.data.buckets import Told, told
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.data.texts import told_of_texts
from cpo_ray.evaluation.domain import domain_class
from cpo_ray.evaluation.rounds import shared_noise
from cpo_ray.evaluation.scorers.base import ModelScorer, open_scorers
from cpo_ray.evaluation.tables import whereabouts
from cpo_ray.hierarchy import Hierarchy, HierarchyError, load_hierarchy
from cpo_ray.models import family
from cpo_ray.models.adapters.keys import AdapterError
from cpo_ray.models.bases.hub import look_up, unpinned
from cpo_ray.models.bases.source import is_hub_id, local_base
from cpo_ray.preflight.durations import steps_of
from cpo_ray.preflight.findings import Finding
from cpo_ray.preflight.machine import available, processor_findings
from cpo_ray.preflight.planner import plan_findings, reading_findings
from cpo_ray.preflight.trials import Trials
from cpo_ray.tracking import resolve_uri
from cpo_ray.training.schedule import BFLOAT16_SHARE, VISIBLE_SHARE, largest_change, swallowed

#: Ray Data unpickles what it reads when one of these is set.
UNSAFE_FLAGS = (
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
)
#: Fewer optimizer steps than these change next to nothing at the usual learning rates.
FEW_STEPS = 100
#: The median size of a denoiser's weights.
USUAL_WEIGHT = 0.02


def check(config: Config, trials: Trials | None = None) -> list[Finding]:
    """Return everything that can be known without starting. The run, or the sweep of `trials`, can start if
    nothing is "missing".
    """
    if trials is not None:
        config = next(iter(trials.largest.values()))
    model = list(_model(config))
    pictures, data = _data(config, trials)
    plannable = all(finding.verdict != "missing" for finding in model)
    return [
        *_settings(config, _factor(config) if plannable else None, pictures),
        *_bfloat16(config, pictures),
        *_tried(trials, pictures),
        *_hierarchy(config),
        *_domain(config),
        *data,
        *model,
        *(_texts(config) if plannable else ()),
        *_resources(config, pictures if plannable else None, trials),
        *_security(os.environ),
    ]


def _tried(trials: Trials | None, pictures: int) -> Iterator[Finding]:
    """Yield what keeps trials of a sweep from starting, each reason once."""
    missing: dict[str, Finding] = {}
    for name, trial in trials.tried.items() if trials else ():
        for finding in (
            *_optimization("preference.optimization", trial.preference.optimization, pictures),
            *_bfloat16(trial, pictures),
        ):
            if finding.verdict == "missing":
                missing.setdefault(finding.sentence, Finding("missing", f"the trial {name}: {finding.sentence}"))
    yield from missing.values()


def unsafe_flags(environment: Mapping[str, str]) -> list[str]:
    """Return those of UNSAFE_FLAGS that are switched on."""
    return [name for name in UNSAFE_FLAGS if environment.get(name, "0").lower() not in ("", "0", "false")]


def _security(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name in unsafe_flags(environment):
        yield Finding("missing", f"{name} is set, which lets data files run code; unset it")
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        yield Finding("note", "RAY_AUTH_MODE is disabled, so whoever reaches Ray's ports can run code here; set it to token")


def _settings(config: Config, factor: int | None, pictures: int) -> Iterator[Finding]:
    """`factor` is the VAE's, in pixels per number of a latent's side, where it is known."""
    problems = [
        *_optimization("expert.optimization", config.expert.optimization, pictures),
        *_optimization("preference.optimization", config.preference.optimization, pictures),
    ]
    targets, conditions = config.targets, config.expert.conditions
    if targets.min_actors > targets.max_actors:
        problems.append(
            Finding("missing", f"targets.min_actors is {targets.min_actors}, more than targets.max_actors ({targets.max_actors})")
        )
    shares = (conditions.null, conditions.negative, conditions.content, conditions.content_positive, conditions.all)
    if not sum(shares):
        problems.append(Finding("missing", "all shares of expert.conditions are 0; give at least one form of the condition"))
    if factor and config.model.resolution % (8 * factor):
        problems.append(
            Finding("missing", f"model.resolution is {config.model.resolution}; it must be a multiple of {8 * factor}")
        )
    multiple = config.data.pictures.multiple
    if factor and config.data.pictures.buckets == "aspect" and multiple % (2 * factor):
        problems.append(Finding("missing", f"data.pictures.multiple is {multiple}; it must be a multiple of {2 * factor}"))
    try:
        uri = resolve_uri(config.tracking, config.run.output)
    except ConfigError as error:
        problems.append(Finding("missing", str(error)))
    else:
        yield Finding("ok", f"tracking: {uri}")
    yield from problems or [Finding("ok", "settings fit together")]


def _optimization(section: str, training: Optimization, pictures: int) -> Iterator[Finding]:
    steps = steps_of(training, pictures)
    if training.global_batch < training.workers:
        yield Finding(
            "missing",
            f"{section}.global_batch is {training.global_batch} for {training.workers} workers; "
            "each needs a sample per step, so use fewer workers or a larger batch",
        )
    if steps and training.checkpoint_every > steps:
        yield Finding("note", f"{section}: no checkpoint before the end, since checkpoint_every is more than {steps} steps")
    if package := missing_package(training):
        yield Finding("missing", f"{section}: {package}")
    if steps and training.warmup_steps >= steps:
        yield Finding(
            "missing",
            f"{section}.warmup_steps is {training.warmup_steps}, yet training ends after {steps} steps, before it has reached "
            f"its learning rate; set it to at most {steps // 10}, or train longer",
        )
    if training.epochs is not None and 0 < steps < FEW_STEPS:
        epochs = math.ceil(FEW_STEPS * training.global_batch / pictures)
        yield Finding(
            "note",
            f"{section}: {training.epochs:g} epochs of {pictures} pictures are {steps} steps of {training.global_batch}, too few "
            f"to learn from; {epochs} epochs would be {FEW_STEPS}, as would a smaller global_batch",
        )


def _bfloat16(config: Config, pictures: int) -> Iterator[Finding]:
    """Check learning rates in bfloat16 with weights of the usual size; the workers repeat it with the weights themselves."""
    for section, training in (("expert", config.expert.optimization), ("preference", config.preference.optimization)):
        steps = steps_of(training, pictures)
        change = largest_change(steps, training)
        visible = math.erf(
            0.477 * change / (BFLOAT16_SHARE * USUAL_WEIGHT)
        )  # for normally distributed weights of that median size
        if steps and config.model.dtype == "bfloat16" and training.parameters == "full" and visible < 0.5:
            verdict: Literal["note", "missing"] = "missing" if visible < VISIBLE_SHARE else "note"
            yield Finding(verdict, f"{section}.optimization: {swallowed(change, visible)}")


def _hierarchy(config: Config) -> Iterator[Finding]:
    try:
        tree = load_hierarchy(config.data.hierarchy)
    except HierarchyError as error:
        yield Finding("missing", f"hierarchy: {error}")
    else:
        yield Finding("ok", f"hierarchy {tree.name!r}: {len(tree.attributes)} attributes")


def _domain(config: Config) -> Iterator[Finding]:
    """Say what reads labels from drawn pictures, and what scores them."""
    try:
        domain, scorers = domain_class(config.domain), open_scorers(config)
    except ConfigError as error:
        yield Finding("missing", str(error))
        return
    if problem := shared_noise(config):
        yield Finding("missing", problem)
    if config.expert.stop_at_gate and not domain.reads_labels:
        yield Finding(
            "missing",
            "expert.stop_at_gate needs somebody who reads labels from pictures, and "
            f"domain.use = {config.domain.use!r} cannot; name a domain that can, or leave stop_at_gate out",
        )
    elif scorers:
        yield Finding("ok", f"pictures are scored by {', '.join(scorer.name for scorer in scorers)}")
        for scorer in scorers:
            if isinstance(scorer, ModelScorer):
                here, sentence = whereabouts(scorer)
                yield Finding("ok" if here else "note", f"{scorer.name}: {sentence}")
    else:
        reason = f"domain.use = {config.domain.use!r} has no scorers, and evaluation.scorers names none"
        yield Finding("note", f"pictures are shown and not scored: {reason}")


def _data(config: Config, trials: Trials | None) -> tuple[int, list[Finding]]:
    """Return the number of training pictures and the findings about them."""
    folder, own = config.data.folder, config.domain.pictures
    if own and not any(folder.glob("*.parquet")):
        drawn = f"data: the domain {config.domain.use!r} will draw {own} pictures into {folder}"
        return round(0.8 * own * config.data.proportion), [Finding("ok", drawn)]
    try:
        dataset = AnnotatedDataset.open(folder)
        tree = _tree(config)
        if tree:
            dataset.check_hierarchy(tree)
        sizes = told_of_pictures(config, dataset)
    except (DataError, ConfigError) as error:
        way = "; python jobs/import_data.py --images FOLDER makes shards of your own pictures"
        return 0, [Finding("missing", f"data: {error}{'' if folder.exists() else way}")]
    verdict: Literal["ok", "note", "missing"] = "missing" if not sizes.used else "note" if sizes.left_out else "ok"
    found = Finding(verdict, f"data: {len(dataset.ids)} pictures in {folder}; {sizes.sentence}")
    lacking = (Finding("note", f"data: {sentence}") for sentence in dataset.lacking())
    return sizes.used, [found, *lacking, *(reading_findings(config, dataset, tree, trials) if tree else ())]


def _texts(config: Config) -> Iterator[Finding]:
    """Say which texts are too long for the base's tokenizers. Others say that there is no data, or not whose."""
    tree = _tree(config)
    try:
        dataset = AnnotatedDataset.open(config.data.folder)
    except DataError:
        return
    if tree and dataset.hierarchy_hash == tree.content_hash and local_base(config.model) is not None:
        told = told_of_texts(dataset, tree, family(config.model).tokens(config.model))
        yield Finding("note" if told.loses else "ok", f"texts: {told.sentence}", planned=told.loses)


def told_of_pictures(config: Config, dataset: AnnotatedDataset) -> Told:
    """Return the fate of the training pictures. Raises ConfigError if no size has the area of the resolution."""
    published, proportion = dataset.published, config.data.proportion
    sizes = [dataset.size(name) for name in dataset.ids if in_training(name, proportion, published.get(name))]
    return told(sizes, config.model.resolution, config.data.pictures)


def _tree(config: Config) -> Hierarchy | None:
    try:
        return load_hierarchy(config.data.hierarchy)
    except HierarchyError:
        return None  # reported by another check


def _model(config: Config) -> Iterator[Finding]:
    """Open the base and the expert's adapter by the loaders' own rules."""
    model = config.model
    try:
        architecture, folder = family(model), local_base(model)
        if folder is None:
            parts = (architecture.denoiser, "vae", "text_encoder", "scheduler")
            yield from (Finding("note", f"model: {sentence}") for sentence in look_up(model, parts))
        else:
            notes = architecture.check_base(model, folder)
            yield Finding("ok", f"model: {folder} holds a {architecture.pipeline}")
            pinned = unpinned(model) if is_hub_id(model.base) and not Path(model.base).is_dir() else None
            yield from (Finding("note", f"model: {sentence}") for sentence in (*notes, *filter(None, [pinned])))
        if (adapter := config.expert.adapter) is not None:
            yield Finding("ok", f"expert.adapter: {architecture.check_adapter(model, adapter, folder)}")
    except AdapterError as error:
        yield Finding("missing", f"expert.adapter: {error}")
    except ConfigError as error:
        yield Finding("missing", f"model: {error}")


def _resources(config: Config, pictures: int | None, trials: Trials | None) -> Iterator[Finding]:
    """Compare what the run takes with what exists. Without pictures (None) nothing is planned, since there is no model to plan
    for.
    """
    try:
        found = available()
    except OSError as error:
        yield Finding("missing", f"no cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} ({error}); start one or unset it")
        return
    yield from processor_findings(config, found)
    if pictures is not None:
        yield from plan_findings(config, local_base(config.model), found, pictures, trials)


def _factor(config: Config) -> int | None:
    """Return the pixels per number of a latent's side of the base's VAE; None if the base is not on this machine."""
    folder = local_base(config.model)
    file = folder / "vae" / "config.json" if folder else None
    return family(config.model).latents.factor(json.loads(file.read_text(encoding="utf-8"))) if file and file.is_file() else None

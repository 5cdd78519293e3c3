"""What each stage of the method does. Every stage leaves its result in the run's folder and is skipped if it exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image

from cpo_ray.config import ConfigError, dump
from cpo_ray.core.files import write_json, write_text
from cpo_ray.core.progress import ProgressLine, Tell
from cpo_ray.evaluation.domain import Picture, open_domain
from cpo_ray.evaluation.gate import Obedience, draw_gate
from cpo_ray.evaluation.gate_page import gate_page
from cpo_ray.evaluation.generate import grid
from cpo_ray.evaluation.measure import Comparison
from cpo_ray.evaluation.models import BASE, EXPERT, compare_models, draw_models, short_name
from cpo_ray.evaluation.report import RunReport, write_report
from cpo_ray.evaluation.rounds import evaluation_round
from cpo_ray.evaluation.samples import sample_watch
from cpo_ray.evaluation.tables import card_section, table
from cpo_ray.models.bases.source import base_source
from cpo_ray.objectives import objective_of
from cpo_ray.recipes import Training, expert_training
from cpo_ray.requirements import Requirement, require
from cpo_ray.run import Run
from cpo_ray.targets.expert import target_store
from cpo_ray.targets.producer import BackgroundProducer, ProductionReport, produce
from cpo_ray.targets.store import Items, TargetStore
from cpo_ray.tracking import RunTracker, ui_command
from cpo_ray.training.artifacts.card import add_evaluation
from cpo_ray.training.artifacts.records import METRICS
from cpo_ray.training.driver import TrainingError, TrainResult, finished, train
from cpo_ray.training.worker import SNAPSHOTS, TrainSpec

#: The last file that a training writes: nothing is left to do for it.
DONE = "done.json"
OBEDIENCE, GATE_PAGE = Path("expert", "obedience.json"), Path("expert", "pictures.html")


def train_expert(run: Run) -> None:
    """Train the expert in stage 1 (paper, 5.1): the denoising loss on pictures whose text names the attributes, good and bad."""
    settings = run.config.expert
    if settings.adapter is not None:
        if not settings.adapter.exists():
            raise ConfigError(f"expert.adapter is {settings.adapter}, which does not exist; train one, or leave the key out")
        return
    train_on_targets(run, expert_training(run.config, run.training_pictures))


def check_obedience(run: Run) -> None:
    """Test the expert as in Table S6 before stage 2 spends anything: an expert that does not obey has nothing to teach."""
    domain, settings = open_domain(run.config.domain, run.tree), run.config.expert
    file, page = run.folder / OBEDIENCE, run.folder / GATE_PAGE
    if not page.exists() or (domain.reads_labels and not file.exists()):
        drawn = draw_gate(run.config, run.dataset, run.tree, run.adapter, domain)
        if domain.reads_labels:
            Obedience.of(drawn).save(file)
        write_text(page, gate_page(run.config, drawn, run.tree))
    run.say(f"what the expert draws, beside the attributes that it was asked for: {page}")
    if not domain.reads_labels:
        run.say(
            f"whether the expert obeys is not measured, since domain.use = {run.config.domain.use!r} reads no attributes from "
            "pictures; look at that page before you trust it"
        )
        return
    found = Obedience.read(file)
    run.say("how the expert obeys (intersection over union of what is asked for and found):\n" + found.table())
    if found.gap < settings.obedience_gate:
        sentence = (
            f"the expert does not obey: IoU_neg(C) - IoU_neg(A) is {found.gap:.2f}, and {settings.obedience_gate} is expected; "
            "train it longer or at a higher rate (expert.optimization), or give it more pictures"
        )
        if settings.stop_at_gate:
            raise ConfigError(sentence)
        run.say(f"WARNING: {sentence}")


def precompute_targets(run: Run) -> ProductionReport:
    """Compute every target shard that stage 2 will read."""
    config, training = run.config, run.alignment(run.config.preference.objective)
    if training.frozen.adapter is not None and not training.frozen.adapter.exists():
        raise ConfigError(f"there is no expert at {run.adapter}; run jobs/train_sft.py first, or name one with expert.adapter")
    shards = training.plan.shards(config.targets.shard_size)
    with target_store(training.frozen, config.targets.folder).in_use():
        counted = ProgressLine("targets").counter("shards", config.targets.max_actors)
        report = produce(training.frozen, shards, config.targets, counted)
    run.say(told(report))
    return report


def train_on_targets(run: Run, training: Training) -> None:
    """Train on the frozen outputs of a training's targets, which are computed beside it or before."""
    name, plan = training.name, training.plan
    done = run.folder / name / DONE
    if done.exists():
        run.say(f"{name}: already trained")
        return
    most = training.objective.most_negatives
    chosen = "" if most is None else f" with at most {most} bad attribute{'' if most == 1 else 's'}"
    pictures = f"{len(plan.sample_ids)} pictures{chosen}"
    shards = plan.shards(run.config.targets.shard_size)
    run.say(f"{name}: {plan.steps} steps of {plan.global_batch} on {pictures}, {len(shards)} target shards")
    tracker = run.track(name, run.folder / name, run.resume, run.told_of(training))
    spec = training_spec(run, training, target_store(training.frozen, run.config.targets.folder), tracker)
    # A run that died between two of these lines does the rest when it is resumed. What was done is done again to the same end.
    try:
        if (result := finished(spec)) is None:
            with _beside(run, training, spec, tracker) as (steps, report):
                result = train(spec, steps, partial(_warn, run, name, tracker))
                run.say(f"{name}: {told(report())}")
    except Exception:
        tracker.finish("FAILED")
        raise
    if _record(run, name, result, tracker):
        write_json(done, {"steps": result.steps})


def _warn(run: Run, name: str, tracker: RunTracker, sentence: str) -> None:
    run.say(f"{name}: WARNING: {sentence}")
    tracker.tag("warning", sentence)


@contextmanager
def _beside(
    run: Run, training: Training, spec: TrainSpec, tracker: RunTracker
) -> Iterator[tuple[Tell, Callable[[], ProductionReport]]]:
    """Compute the targets of a training, and draw pictures with its snapshots, beside the block.

    Yields the counter of its steps, and a function that waits for the targets and says what was done.
    """
    shards, line = training.plan.shards(spec.shard_size), ProgressLine(training.name)
    attributes = training.name == "expert"
    with (
        spec.targets.in_use(),
        sample_watch(run.config, run.dataset, run.tree, spec.output / SNAPSHOTS, tracker, attributes),
        _production(run, training, shards, spec.run_id, line) as report,
    ):
        yield line.counter("steps"), report


def training_spec(run: Run, training: Training, targets: TargetStore, tracker: RunTracker) -> TrainSpec:
    """Return a training of this run, in its own folder below the run's. Trials of a sweep are built here, too."""
    config = run.config
    return TrainSpec(
        run_id=f"{config.run.name}-{training.name}",
        output=run.folder / training.name,
        model=config.model,
        lora=training.lora,
        optimization=training.optimization,
        objective=training.objective,
        plan=training.plan,
        targets=targets,
        shard_size=config.targets.shard_size,
        seed=training.seed,
        timeout_seconds=config.targets.timeout_seconds,
        resume=run.resume,
        card={
            "hierarchy": f"{run.tree.name} {run.tree.version}, {run.tree.content_hash}",
            "data": f"{len(run.dataset.ids)} pictures, {run.dataset.fingerprint}",
        },
        tracking=tracker,
        snapshots=config.evaluation.samples > 0,
    )


@contextmanager
def _production(
    run: Run, training: Training, shards: Sequence[Items], run_id: str, line: ProgressLine
) -> Iterator[Callable[[], ProductionReport]]:
    """Compute the target shards of a training beside the block, or before it where `targets.overlap` is off.

    Shards are computed in the order of the run's seed. A training in another order may need the last of them in its first step,
    so it always comes after. Beside the block, shards that turn out to be damaged are computed again.
    Yields a function that waits for the end and says what was done.
    """
    targets, frozen = run.config.targets, training.frozen
    with BackgroundProducer(frozen, shards, targets, run_id, line.counter("targets", targets.max_actors)) as producer:
        if not targets.overlap or training.plan.order is not None:
            producer.join()
        try:
            yield producer.join
        except TrainingError:
            producer.stop()
            producer.join()  # where the targets failed, training only waited for them: its sentence is the cause
            raise


def _record(run: Run, name: str, result: TrainResult, tracker: RunTracker) -> bool:
    """Say how a training ended, and keep its adapter in MLflow. Return whether MLflow has taken all of it."""
    run.say(f"{name}: {result.sentence}")
    if result.ledger_problem:
        run.say(f"{name}: WARNING: {result.ledger_problem}")
    kept = tracker.log_adapter(result.adapter, base_source(run.config.model), run.config.model.revision)
    if tracker.finish() and kept:
        return True
    run.say(f"{name}: MLflow has not taken everything; once it answers, --resume sends what it lacks")
    return False


def told(report: ProductionReport) -> str:
    text = f"{report.shards_written} target shards computed, {report.already_there} reused"
    if report.expert_forwards:
        text += f", {report.expert_forwards} forward passes of the expert and the reference"
    if report.dropped_attributes:
        text += f"; WARNING: {report.dropped_attributes} attributes did not fit into the text encoder and were left out"
    if report.damaged:
        text += f"; WARNING: {report.damaged} shards were damaged on the disk and have been computed again; check it"
    return text


def evaluate(run: Run, required: Sequence[Requirement] = ()) -> None:
    """Draw, measure and report. The last lines for the user are the table and the places of everything.

    Raises RequirementMissed, after all that, where a figure of the run's own objective misses what is `required`.
    """
    config, folder = run.config, run.folder / "evaluation"
    trained = {name: path for name in config.preference.trainings if (path := run.folder / name / "adapter").exists()}
    if not trained:
        raise ConfigError(f"{run.folder} holds no trained model; run jobs/train_cpo.py first")
    domain = open_domain(config.domain, run.tree)
    asked = evaluation_round(config, run.dataset, domain)
    on_progress = ProgressLine("evaluation").counter("pictures", config.evaluation.actors * config.evaluation.batch)
    pictures = draw_models(config, run.tree, asked, {EXPERT: run.adapter, **trained}, folder / "pictures", on_progress)
    for name, made in pictures.items():
        file = folder / f"{short_name(name)}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid(made[:64], 8)).save(file)
        run.tracker.log_pictures(short_name(name), file, step=0)
    found = compare_models(config, domain, asked, pictures, folder / "readings")
    for name, reason in found.left_out.items() if found else ():
        run.say(f"WARNING: not scored by {name}: {reason}")
    report = write_report(_report(run, asked.prompts, pictures, found), folder / "report.html")
    run.tracker.log_report(report)
    if found is not None:
        write_json(folder / "result.json", found.as_json())
        write_text(folder / "table.txt", table(found) + "\n")
        _publish(run, trained, found)
        print("\n" + table(found) + "\n")
    run.tracker.finish()
    print(f"report        {report}")
    print(f"MLflow store  {run.tracker.uri}")
    print(f"open it with  {ui_command(run.tracker.uri)}")
    if found is not None:
        require(required, next(iter(config.preference.trainings)), found.models)


def _report(run: Run, prompts: Sequence[str], pictures: Mapping[str, Sequence[Picture]], found: Comparison | None) -> RunReport:
    """Return everything that the report of a run shows."""
    trainings, obedience = run.config.preference.trainings, run.folder / OBEDIENCE
    curves = {
        name: path
        for name in trainings
        if not objective_of(trainings[name]).supervised and (path := run.folder / name / METRICS).exists()
    }
    featured = next(iter(trainings))
    return RunReport(
        title=f"CPO run {run.config.run.name}",
        pictures=pictures,
        prompts=prompts,
        tree=run.tree,
        featured=featured if featured in pictures else None,
        result=found,
        curves=curves,
        settings=dump(run.config),
        provenance=run.provenance,
        obedience=Obedience.read(obedience) if obedience.exists() else None,
    )


def _publish(run: Run, trained: Mapping[str, Path], found: Comparison) -> None:
    """Log each training's scores on its own MLflow run under the same names, and complete its model card.

    The base has no run of its own, so its scores are on the run of the whole.
    """
    with run.tracker.start() as logger:
        logger.log(0, {f"{BASE}.{name}": value for name, value in found.models[BASE].flat(".").items()})
    for name, adapter in {EXPERT: run.adapter, **trained}.items():
        if not (run.folder / short_name(name) / "adapter").exists():
            continue  # another run has trained this expert
        tracker = run.track(short_name(name), run.folder / short_name(name), resume=True)
        with tracker.start() as logger:
            logger.log(0, found.models[name].flat("."))
        models = {BASE: found.models[BASE], name: found.models[name]}
        add_evaluation(adapter, card_section(found.scorers, models, "test", run.config.evaluation.pictures))
        tracker.log_card(adapter, run.config.model.revision)
        tracker.finish()

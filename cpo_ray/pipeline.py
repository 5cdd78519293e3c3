"""The method, stage by stage.  Each public function is one job; `train_cpo` reads like the paper's algorithm.

    annotated pictures ─► stage 1: expert θ1 ─► targets: frozen outputs of θ1 and the reference ─► stage 2: CPO ─► evaluation

Every stage leaves its result in the run's folder and is skipped when it is there: to resume is to call the same function again.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cpo_ray.checks import check, told_of_pictures
from cpo_ray.config import Config, ConfigError, Lora, Optimization, changed, dump
from cpo_ray.data.buckets import Bucket
from cpo_ray.data.importer import ImportReport, import_folder
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.evaluate import EvaluationResult, card_section, table
from cpo_ray.evaluation.obedience import Obedience, measure_obedience
from cpo_ray.evaluation.samples import sample_watch
from cpo_ray.evaluation.stage import domain_of, evaluate_run
from cpo_ray.models.base import base_source
from cpo_ray.plan import Item, Plan
from cpo_ray.planner.trials import Trials
from cpo_ray.progress import ProgressLine
from cpo_ray.recipes import expert_spec, supervised_spec, training_pictures, training_plan, usable_pictures
from cpo_ray.session import connect
from cpo_ray.targets.expert import ExpertSpec, target_store
from cpo_ray.targets.producer import BackgroundProducer, ProductionReport, produce
from cpo_ray.targets.store import TargetStore
from cpo_ray.toy.dataset import make_dataset
from cpo_ray.tracking import RunTracker, git_commit, open_experiment, resolve_uri, start_run, ui_command
from cpo_ray.training.card import add_evaluation
from cpo_ray.training.health import TrainingHealthError
from cpo_ray.training.run import TrainingError, TrainResult, train
from cpo_ray.training.worker import SNAPSHOTS, TrainSpec
from hierarchy import Hierarchy, load_hierarchy

OBEDIENCE = Path("expert", "obedience.json")


@dataclass(frozen=True)
class Run:
    """What every stage shares: the settings, the expert knowledge, the data, where results go and who keeps track."""

    config: Config
    tree: Hierarchy
    dataset: AnnotatedDataset
    folder: Path
    tracker: RunTracker
    resume: bool

    @property
    def pictures(self) -> dict[str, Bucket]:
        """The ids of the data set with the sizes that they are taken at; those that are too small are not among them."""
        return usable_pictures(self.config, self.dataset)

    @property
    def training_pictures(self) -> dict[str, Bucket]:
        """What stage 1 and stage 2 learn from."""
        return training_pictures(self.config, self.pictures)

    @property
    def good_pictures(self) -> dict[str, Bucket]:
        """Training pictures with at most one negative attribute, for the supervised baseline."""
        pictures = self.training_pictures.items()
        return {name: bucket for name, bucket in pictures if len(self.dataset.labels(name).negative_ids) <= 1}

    @property
    def adapter(self) -> Path:
        """The expert's adapter: the configured one, or the one that stage 1 of this run leaves."""
        return self.config.expert.adapter or self.folder / "expert" / "adapter"

    @property
    def objectives(self) -> tuple[str, ...]:
        """What stage 2 trains: the configured objective, then the baselines."""
        preference = self.config.preference
        return tuple(dict.fromkeys((preference.objective, *preference.baselines)))

    def say(self, sentence: str) -> None:
        print(f"[{self.config.run.name}] {sentence}", flush=True)


def train_cpo(config: Config, resume: bool = False) -> None:
    """The whole method: expert, targets beside training, CPO, the baselines asked for, evaluation and report."""
    run = open_run(config, resume)
    train_expert(run)
    check_obedience(run)
    align(run, config.preference.objective)
    for baseline in run.objectives[1:]:
        try:
            align(run, baseline)
        except TrainingHealthError as error:  # what a baseline is there to show, and no reason to lose the rest
            run.say(f"{baseline}: {error}; it is left out of the comparison")
    _evaluate(run)


def train_sft(config: Config, resume: bool = False) -> None:
    """Stage 1 alone: the expert θ1, and whether it obeys its attributes (Table S6)."""
    run = open_run(config, resume)
    train_expert(run)
    check_obedience(run)
    run.tracker.finish()


def precompute_targets(config: Config) -> ProductionReport:
    """Compute every target shard that stage 2 of this configuration will read."""
    run = open_run(config, resume=True)
    if not run.adapter.exists():
        raise ConfigError(f"there is no expert at {run.adapter}; run jobs/train_sft.py first, or name one with expert.adapter")
    plan = training_plan(config, run.training_pictures, config.preference.optimization, config.targets.draws)
    frozen, shards = expert_spec(config, run.adapter), plan.shards(config.targets.shard_size)
    with target_store(frozen, config.targets.folder).in_use():
        report = produce(frozen, shards, config.targets, ProgressLine("targets").counter("shards"))
    run.say(told(report))
    return report


def evaluate(config: Config) -> None:
    """Generate, measure and report whatever the run has trained."""
    _evaluate(open_run(config, resume=True))


def import_data(config: Config, images: Path) -> ImportReport:
    """A folder of pictures with metadata.jsonl → annotated shards in `data.folder`."""
    report = import_folder(images, config.data.folder, load_hierarchy(config.data.hierarchy))
    print(report.summary())
    return report


def open_run(config: Config, resume: bool = False, trials: Trials | None = None) -> Run:
    """Load and check what every stage needs, claim the run's folder, connect to Ray and to MLflow; with `trials` for a sweep.

    Raises ConfigError when the folder holds another run: to resume, the configuration must be the one it was started with, except
    for what it is computed with.
    """
    folder = config.folder.absolute()
    record, resolved = folder / "config.toml", dump(config)
    if record.exists() and not resume:
        raise ConfigError(f"{folder} already holds a run; pass --resume to go on with it, or another run.name=NAME")
    if record.exists() and (differing := changed(record.read_text(), config)):
        raise ConfigError(
            f"{record} was started with other settings than {'; '.join(differing)}; give this run another run.name "
            "(workers, their resources, micro_batch and zero_stage may change, what is trained may not)"
        )
    connect()
    findings = check(config, trials)
    if missing := [finding.sentence for finding in findings if finding.verdict == "missing"]:
        raise ConfigError("\n".join(missing))
    tree = load_hierarchy(config.data.hierarchy)
    dataset = open_data(config, tree)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(resolved)
    tracker = start_tracking(config, dataset, tree, config.run.name, folder, None, resume)
    run = Run(config, tree, dataset, folder, tracker, resume)
    for finding in findings:
        if finding.planned:
            run.say(finding.sentence)
    sizes = told_of_pictures(config, dataset)
    run.say(f"WARNING: {sizes.sentence}" if sizes.left_out else sizes.sentence)
    return run


def open_data(config: Config, tree: Hierarchy) -> AnnotatedDataset:
    """The annotated shards; the embedded domain draws its own when asked to."""
    if config.data.toy_pictures:
        return make_dataset(config.data.folder, config.data.toy_pictures, config.run.seed, tree)
    dataset = AnnotatedDataset.open(config.data.folder)
    dataset.check_hierarchy(tree)
    return dataset


def train_expert(run: Run) -> None:
    """Stage 1 (paper, 5.1): the denoising loss on pictures whose text names the attributes, good and bad."""
    settings = run.config.expert
    if settings.adapter is not None:
        if not settings.adapter.exists():
            raise ConfigError(f"expert.adapter is {settings.adapter}, where there is nothing; train one or leave the key out")
        return
    plan = training_plan(run.config, run.training_pictures, settings.optimization)
    spec = supervised_spec(run.config, settings.conditions)
    _train(run, "expert", "sft", plan, spec, settings.optimization, settings.lora)


def align(run: Run, objective: str) -> None:
    """Stage 2 (paper, 5.2) or a baseline: the model learns from y alone, on the frozen outputs of θ1 and the reference."""
    settings = run.config.preference
    if objective == "sft":
        plan = training_plan(run.config, run.good_pictures, settings.optimization)
        spec = supervised_spec(run.config)
    else:
        plan = training_plan(run.config, run.training_pictures, settings.optimization, run.config.targets.draws)
        spec = expert_spec(run.config, run.adapter)
    _train(run, objective, objective, plan, spec, settings.optimization, settings.lora)


def _train(run: Run, name: str, objective: str, plan: Plan, frozen: ExpertSpec, optimization: Optimization, lora: Lora) -> None:
    """Produce the target shards of a plan and train on them, at the same time or one after the other."""
    if (run.folder / name / "adapter").exists():
        run.say(f"{name}: already trained")
        return
    config, shards = run.config, plan.shards(run.config.targets.shard_size)
    run.say(f"{name}: {plan.steps} steps of {plan.global_batch} on {len(plan.sample_ids)} pictures, {len(shards)} target shards")
    tracker = start_tracking(run.config, run.dataset, run.tree, name, run.folder / name, run.tracker, run.resume)
    targets = target_store(frozen, config.targets.folder)
    spec = training_spec(run, name, objective, plan, targets, optimization, lora, tracker)
    with (
        targets.in_use(),
        sample_watch(config, run.dataset, run.tree, spec.output / SNAPSHOTS, tracker, attributes=name == "expert"),
    ):
        result, report = _produce_and_train(run, spec, frozen, shards, name, tracker)
    run.say(f"{name}: {told(report)}")
    _record(run, name, result, tracker)


def training_spec(
    run: Run,
    name: str,
    objective: str,
    plan: Plan,
    targets: TargetStore,
    optimization: Optimization,
    lora: Lora,
    tracker: RunTracker,
) -> TrainSpec:
    """A training of this run, in a folder of its own below the run's; a trial of a sweep is made from the same lines."""
    config = run.config
    return TrainSpec(
        run_id=f"{config.run.name}-{name}",
        output=run.folder / name,
        model=config.model,
        lora=lora,
        optimization=optimization,
        objective=objective,
        omega_win=config.preference.omega_win,
        omega_lose=config.preference.omega_lose,
        beta=config.preference.beta,
        plan=plan,
        targets=targets,
        shard_size=config.targets.shard_size,
        seed=config.run.seed,
        timeout_seconds=config.targets.timeout_seconds,
        resume=run.resume,
        card={
            "hierarchy": f"{run.tree.name} {run.tree.version}, {run.tree.content_hash}",
            "data": f"{len(run.dataset.ids)} pictures, {run.dataset.fingerprint}",
        },
        tracking=tracker,
        snapshots=config.evaluation.samples > 0,
    )


def _produce_and_train(
    run: Run, spec: TrainSpec, frozen: ExpertSpec, shards: Sequence[tuple[Item, ...]], name: str, tracker: RunTracker
) -> tuple[TrainResult, ProductionReport]:
    """At the same time, or one after the other where `targets.overlap` is off."""
    line, targets = ProgressLine(name), run.config.targets

    def warn(sentence: str) -> None:
        run.say(f"{name}: WARNING: {sentence}")
        tracker.tag("warning", sentence)

    if not targets.overlap:
        report = produce(frozen, shards, targets, line.counter("targets"))
        return train(spec, line.counter("steps"), warn), report
    with BackgroundProducer(frozen, shards, targets, spec.run_id, line.counter("targets")) as producer:
        try:
            result = train(spec, line.counter("steps"), warn)
        except TrainingError:
            producer.stop()
            producer.join()  # where the targets failed, training only waited for them: its sentence is the cause
            raise
        return result, producer.join()


def start_tracking(
    config: Config, dataset: AnnotatedDataset, tree: Hierarchy, name: str, folder: Path, parent: RunTracker | None, resume: bool
) -> RunTracker:
    """An MLflow run of its own for every training, below the one of the whole."""
    uri = resolve_uri(config.tracking, config.run.output)
    experiment = open_experiment(uri, config.tracking.experiment, config.run.output.absolute() / "mlartifacts")
    return start_run(
        uri,
        experiment,
        name,
        folder,
        config_text=dump(config),
        params=config.model_dump(mode="json"),
        tags={"data": dataset.fingerprint, "hierarchy": tree.content_hash, "commit": git_commit()},
        parent_run_id=parent.run_id if parent else None,
        resume=resume,
    )


def _record(run: Run, name: str, result: TrainResult, tracker: RunTracker) -> None:
    """Say how a training ended and keep its adapter in MLflow."""
    run.say(f"{name}: {result.sentence}")
    if result.ledger_problem:
        run.say(f"{name}: WARNING: {result.ledger_problem}")
    tracker.log_adapter(result.adapter, base_source(run.config.model), run.config.model.revision)
    tracker.finish()


def told(report: ProductionReport) -> str:
    text = f"{report.shards_written} target shards computed, {report.already_there} there before, {report.expert_forwards} passes"
    if report.dropped_attributes:
        text += f"; WARNING: {report.dropped_attributes} attributes did not fit into the text encoder and were left out"
    return text


def check_obedience(run: Run) -> None:
    """Table S6, before stage 2 spends anything: an expert that does not obey has nothing to teach."""
    domain, settings = domain_of(run.config), run.config.expert
    if domain is None:
        run.say("nothing here can read attributes from pictures; look at what the expert draws before you trust it")
        return
    file = run.folder / OBEDIENCE
    found = Obedience.read(file) if file.exists() else measure_obedience(run.config, run.dataset, run.tree, run.adapter, domain)
    found.save(file)
    run.say("how the expert obeys (intersection over union of what is asked for and found):\n" + found.table())
    if found.gap < settings.obedience_gate:
        sentence = (
            f"the expert does not obey: IoU_neg(C) - IoU_neg(A) is {found.gap:.2f}, and {settings.obedience_gate} is expected; "
            "train it longer or at a higher rate (expert.optimization), or give it more pictures"
        )
        if settings.stop_at_gate:
            raise ConfigError(sentence)
        run.say(f"WARNING: {sentence}")


def _evaluate(run: Run) -> None:
    """Draw, measure and report; the last thing a user sees is the table and where everything lies."""
    adapters = {name: path for name in run.objectives if (path := run.folder / name / "adapter").exists()}
    if not adapters:
        raise ConfigError(f"{run.folder} holds no trained model; run jobs/train_cpo.py first")
    provenance = {
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": git_commit(),
        "data": run.dataset.fingerprint,
        "hierarchy": f"{run.tree.name} {run.tree.version}, {run.tree.content_hash}",
        "packages": ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "ray", "deepspeed", "peft")),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    obeyed = Obedience.read(file) if (file := run.folder / OBEDIENCE).exists() else None
    on_progress = ProgressLine("evaluation").counter("pictures")
    result, report = evaluate_run(run.config, run.dataset, run.tree, run.adapter, adapters, provenance, obeyed, on_progress)
    run.tracker.log_report(report)
    for picture in sorted(report.parent.glob("*.png")):
        run.tracker.log_pictures(picture.stem, picture, step=0)
    if result is not None:
        with run.tracker.start() as logger:
            for name, model in result.models.items():
                key = name.split(",")[0]
                logger.log(0, {f"{key}/negatives": model.negatives.mean, f"{key}/content": model.content.mean,
                               f"{key}/distance": model.distance})  # fmt: skip
        _complete_cards(run, adapters, result)
    run.tracker.finish()
    if result is not None:
        print("\n" + table(result) + "\n")
    print(f"report        {report}")
    print(f"MLflow store  {run.tracker.uri}")
    print(f"open it with  {ui_command(run.tracker.uri)}")


def _complete_cards(run: Run, adapters: Mapping[str, Path], result: EvaluationResult) -> None:
    """Say in each model card, here and in MLflow, what was measured."""
    for name, folder in adapters.items():
        add_evaluation(folder, card_section(result, name))
        tracker = start_tracking(run.config, run.dataset, run.tree, name, run.folder / name, run.tracker, resume=True)
        tracker.log_card(folder, run.config.model.revision)
        tracker.finish()

"""What every rank of a training does, in stage 1, stage 2 and the baselines: read targets, predict, step, record.

The denoiser is the only model here. `Trainer` knows torch.distributed and DeepSpeed; `train_loop` adds Ray Train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray import cloudpickle
from torch import Tensor, distributed

from cpo_ray.config import Lora, Model, Optimization
from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.core.files import write_json, written_folder
from cpo_ray.core.plan import Batch, Plan
from cpo_ray.models import family
from cpo_ray.models.base import DTYPES
from cpo_ray.objectives import ViewOutputs, objective_of
from cpo_ray.targets.reader import TargetBatch, TargetReader
from cpo_ray.targets.store import Items, TargetStore
from cpo_ray.training.artifacts.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from cpo_ray.training.artifacts.export import ExportError, Probe, TrainedWeights, export_weights, probe_output
from cpo_ray.training.artifacts.ledger import LedgerEntry, write_segment
from cpo_ray.training.artifacts.records import StepTracking, model_card, open_loggers
from cpo_ray.training.engine.optimizers import check_learning_rate
from cpo_ray.training.health import COMPARED_EVERY, HealthWatch, TrainingHealthError, difference
from cpo_ray.training.schedule import learning_rate_at

ADAPTER = "adapter"
SNAPSHOTS = "snapshots"
HELD_OUT = "held_out.json"
_PROBE_SAMPLES = 2


@dataclass(frozen=True)
class TrainSpec:
    """One training, complete and picklable. `run_id` also names the producer of its targets, whose failure ends the wait.

    The output folder must be seen by all nodes. `card` adds lines to the model card: counts of the data, the hierarchy's hash.
    """

    run_id: str
    output: Path
    model: Model
    lora: Lora
    optimization: Optimization
    objective: ObjectiveSettings
    plan: Plan
    targets: TargetStore
    shard_size: int
    timeout_seconds: float
    seed: int = 0
    """Decides the first weights of an adapter."""
    card: Mapping[str, str] = field(default_factory=dict)
    tracking: StepTracking | None = None
    snapshots: bool = False
    """Also leave the weights of every checkpoint below `snapshots/`, for the process that draws with them and removes them."""
    shards: tuple[Items, ...] = ()
    """The shards with the items, if they are not the plan's own; trials of a sweep share theirs."""
    held_out: Plan | None = None
    """Steps that are computed at every snapshot and never trained on. The metrics lie beside the weights."""
    resume: bool = False


@dataclass(frozen=True)
class WorkerResult:
    """How a worker group ended. `failure` is returned, not raised, since a restart would only repeat it."""

    first_step: int
    last_step: int
    metrics: dict[str, float]
    failure: TrainingHealthError | ExportError | None = None
    warnings: tuple[str, ...] = ()


class Trainer:
    """The denoiser, its engine and its targets on one rank; needs an initialised torch.distributed. All
    methods are collective.

    Raises TrainingHealthError if the learning rate is too small for a model in bfloat16 to move.
    """

    def __init__(self, spec: TrainSpec) -> None:
        # Here alone, and before any model: DeepSpeed takes seconds to import, and only a rank needs it.
        from cpo_ray.training.engine.engine import Engine

        self.spec = spec
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.family = family(spec.model)
        self.objective = objective_of(spec.objective)
        shards = spec.shards or spec.plan.shards(spec.shard_size)
        self.reader = TargetReader(spec.targets, shards, spec.timeout_seconds, spec.run_id)
        self.trained: list[LedgerEntry] = []
        optimization = spec.optimization
        denoiser = self.family.load_denoiser(spec.model)
        if optimization.parameters == "lora":
            self.family.add_lora(denoiser, spec.lora, spec.seed)
        else:
            denoiser.requires_grad_(True)
        if spec.model.dtype == "bfloat16":
            check_learning_rate(denoiser, spec.plan.steps, optimization)
        if optimization.gradient_checkpointing:
            self.family.checkpoint_gradients(denoiser)
        # A micro-batch larger than a rank's share would only add padding.
        self.micro_batch = min(optimization.micro_batch, math.ceil(spec.plan.global_batch / self.world_size))
        self.engine = Engine(
            denoiser,
            optimization,
            micro_batch=self.micro_batch,
            accumulation=len(self.microbatches(0)),
            bfloat16=spec.model.dtype == "bfloat16",
        )
        self.untrained = self.engine.checksum()

    def microbatches(self, step: int) -> list[Batch]:
        """Return what this rank computes in a step."""
        return self.spec.plan.rank_microbatches(step, self.rank, self.world_size, self.micro_batch)

    def step(self, step: int) -> dict[str, float]:
        """Do one optimizer step and return metrics: means over the planned items of all ranks, equal on every rank."""
        started, waited = time.perf_counter(), self.reader.waited_seconds
        planned = len(self.spec.plan.step(step).planned)
        totals: dict[str, Tensor] = {}
        for batch in self.microbatches(step):
            targets = self.reader.batch(batch, self.engine.device)
            losses, metrics = self.objective(self._outputs(targets), self.spec.objective)
            weights = targets.weights.to(losses.device)
            # DeepSpeed takes the mean over micro-batches and ranks. This factor makes it the mean over the planned items.
            scale = self.engine.accumulation * self.world_size / planned
            self.engine.backward((weights * losses).sum() * scale)
            _add(totals, metrics, weights)
            self.trained += [(step, item) for item, weight in zip(targets.items, targets.weights, strict=True) if weight > 0]
        learning_rate = learning_rate_at(step, self.spec.plan.steps, self.spec.optimization)
        gradient_norm = self.engine.step(learning_rate)
        return {
            **self._means(totals, planned),
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "seconds_waited_for_targets": self._slowest(self.reader.waited_seconds - waited),
            "samples_per_second": planned / self._slowest(time.perf_counter() - started),
        }

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Return the objective's metrics on the held-out items, as means over all items and ranks."""
        plan = self.spec.held_out
        assert plan is not None
        totals: dict[str, Tensor] = {}
        for step in range(plan.steps):
            for batch in plan.rank_microbatches(step, self.rank, self.world_size, self.micro_batch):
                targets = self.reader.batch(batch, self.engine.device)
                losses, metrics = self.objective(self._outputs(targets), self.spec.objective)
                _add(totals, metrics, targets.weights.to(losses.device))
        return self._means(totals, plan.total_items)

    def export(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Write the trained weights, or their moving average, on rank 0, and compare their effect. Raises ExportError there."""
        targets = self.reader.batch(self.microbatches(self.spec.plan.steps - 1)[0], self.engine.device)
        x_t, timestep, conditioning = targets.inputs(DTYPES[self.spec.model.dtype], count=_PROBE_SAMPLES)
        with self.engine.averaged():
            output = probe_output(self.family, self.engine.model, x_t, timestep, conditioning)
            state = self.engine.trained_state()
        if self.rank == 0:
            export_weights(
                self._trained(state), folder, model_card(self.spec, metrics), Probe(x_t, timestep, conditioning, output)
            )

    def snapshot(self, folder: Path) -> None:
        """Write the current weights, or their average, on rank 0. `folder` appears only when it is complete."""
        with self.engine.averaged():
            held_out = {} if self.spec.held_out is None else self.held_out()
            state = self.engine.trained_state()
        if self.rank == 0:
            with written_folder(folder) as partial:
                self._trained(state).write(partial)
                write_json(partial / HELD_OUT, held_out)

    def _trained(self, state: dict[str, Tensor]) -> TrainedWeights:
        return TrainedWeights(self.spec.model, self.engine.denoiser, state, self.spec.optimization.parameters)

    def difference(self, step: int) -> str | None:
        """Return half a sentence if the ranks' weights differ after a step, else None. At ZeRO-3 no two ranks have the same
        weights.
        """
        if self.world_size == 1 or not self.engine.replicated:
            return None
        own = torch.tensor([self.engine.checksum()], device=self.engine.device)
        gathered = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(gathered, own)
        return difference(step, [int(checksum) for checksum in gathered])

    def _outputs(self, targets: TargetBatch) -> tuple[ViewOutputs, ...]:
        """Return what the objective reads of each view: the model's prediction and the frozen outputs."""
        inputs = targets.inputs(DTYPES[self.spec.model.dtype], self.objective.views)
        predictions = self.family.predict(self.engine.model, *inputs)  # all views in one forward
        return targets.outputs(predictions, self.objective, self.spec.objective)

    def _means(self, totals: Mapping[str, Tensor], planned: int) -> dict[str, float]:
        stacked = torch.stack(list(totals.values())).double()
        distributed.all_reduce(stacked)
        return dict(zip(totals, (stacked / planned).tolist(), strict=True))

    def _slowest(self, seconds: float) -> float:
        longest = torch.tensor(seconds, device=self.engine.device, dtype=torch.float64)
        distributed.all_reduce(longest, distributed.ReduceOp.MAX)
        return float(longest)


def train_loop(config: dict[str, Any]) -> WorkerResult:
    """The function that Ray Train runs on every rank; config["spec"] is a TrainSpec as bytes, from this job's own driver.

    Ray passes all arguments in this form. As bytes it is not unpacked by Ray Train's controller, which would import torch for it.
    """
    spec: TrainSpec = cloudpickle.loads(config["spec"])
    torch.set_num_threads(max(1, int(spec.optimization.cpus_per_worker)))
    try:
        trainer = Trainer(spec)
    except TrainingHealthError as error:
        return WorkerResult(0, 0, {}, error)
    state = restore_checkpoint(trainer.engine)
    watch = HealthWatch(spec.optimization.spike_factor, spec.optimization.gradient_clip, state.gradient_norms)
    first, metrics, steps = state.step, state.metrics or {}, spec.plan.steps
    with ExitStack() as stack:
        loggers = open_loggers(spec, first, stack) if trainer.rank == 0 else []
        for step in range(first, steps):
            metrics = trainer.step(step)
            for logger in loggers:
                logger.log(step, metrics)
            # The numbers are equal on all ranks, so either all stop here or none.
            if problem := watch.problem(step, metrics["loss"], metrics["gradient_norm"]):
                return WorkerResult(first, step, metrics, _health_error(problem, _GENTLER))
            due = (step + 1) % spec.optimization.checkpoint_every == 0 or step + 1 == steps
            if (due or (step + 1) % COMPARED_EVERY == 0) and (problem := trainer.difference(step)):
                return WorkerResult(first, step, metrics, _health_error(problem, _OTHER_MACHINE))
            if due:
                write_segment(spec.output, state.step, step + 1, trainer.rank, trainer.trained)
                trainer.trained.clear()
                state = TrainingState(step + 1, tuple(watch.norms), metrics)
                if spec.snapshots:  # before the checkpoint counts, since a resume from it would not write the snapshot again
                    trainer.snapshot(snapshot_folder(spec, step + 1))
                save_checkpoint(trainer.engine, state, spec.output.absolute() / spec.run_id)
    try:
        trainer.export(spec.output / ADAPTER, metrics)
    except ExportError as error:
        return WorkerResult(first, steps, metrics, error)
    return WorkerResult(first, steps, metrics, warnings=_warnings(trainer, steps))


def snapshot_folder(spec: TrainSpec, step: int) -> Path:
    """Return where the weights after `step` steps are left."""
    return spec.output / SNAPSHOTS / f"step-{step:08d}"


def _warnings(trainer: Trainer, steps: int) -> tuple[str, ...]:
    """Return the warnings about a finished training."""
    if trainer.engine.checksum() != trainer.untrained:
        return ()
    what = f"after {steps} steps not one weight has changed in {trainer.spec.model.dtype}, so the result does nothing in it"
    return (f"{what}; raise learning_rate or train longer",)


_GENTLER = "try a smaller learning_rate, or for a preference objective a smaller beta or omega"
_OTHER_MACHINE = "resume from there, and leave out the machine if it happens again"


def _health_error(problem: str, advice: str) -> TrainingHealthError:
    checkpoint = ray.train.get_checkpoint()
    last = f"the last good checkpoint is {checkpoint.path}" if checkpoint else "no checkpoint was written yet"
    return TrainingHealthError(f"training stopped: {problem}; {last}; {advice}")


def _add(totals: dict[str, Tensor], metrics: Mapping[str, Tensor], weights: Tensor) -> None:
    """Add up metrics (B,) with their weights (B,)."""
    for name, values in metrics.items():
        totals[name] = totals.get(name, torch.zeros((), device=weights.device)) + (weights * values).sum()

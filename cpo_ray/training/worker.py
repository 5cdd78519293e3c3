"""What every rank of a training does, stage 1, stage 2 and the baselines alike: read targets, predict, step, record.

The denoiser is the only model here. `Trainer` knows torch.distributed and DeepSpeed; `train_loop` adds Ray Train.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
from torch import Tensor, distributed

from cpo_ray.config import Lora, Model, Optimization
from cpo_ray.models import family
from cpo_ray.models.base import DTYPES
from cpo_ray.objectives import ObjectiveParameters, get_objective
from cpo_ray.plan import Batch, Plan
from cpo_ray.targets.reader import TargetBatch, TargetReader
from cpo_ray.targets.store import Items, TargetStore
from cpo_ray.training.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from cpo_ray.training.engine import Engine, learning_rate_at
from cpo_ray.training.export import ExportError, Probe, export_adapter, probe_output, write_weights
from cpo_ray.training.health import HealthWatch, TrainingHealthError
from cpo_ray.training.ledger import Entry, drop_after, write_segment, write_text

ADAPTER = "adapter"
METRICS = "metrics.jsonl"
SNAPSHOTS = "snapshots"
HELD_OUT = "held_out.json"
_PROBE_SAMPLES = 2


class StepLogger(Protocol):
    """Takes the metrics of each step; lives on rank 0."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Tracking(Protocol):
    """Picklable; starts the logger in the process that logs."""

    def start(self) -> StepLogger: ...


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
    objective: str
    plan: Plan
    targets: TargetStore
    shard_size: int
    timeout_seconds: float
    seed: int = 0
    omega_win: float = 2.0
    omega_lose: float = 2.0
    beta: float = 5000.0
    card: Mapping[str, str] = field(default_factory=dict)
    tracking: Tracking | None = None
    snapshots: bool = False
    """Leave the weights of every checkpoint below `snapshots/` too, for whoever draws with them and removes them."""
    shards: tuple[Items, ...] = ()
    """The shards that hold the items, where they are not those of the plan alone: the trials of a sweep share theirs."""
    held_out: Plan | None = None
    """Its steps are computed at every snapshot and never trained on; the metrics lie beside the weights."""
    resume: bool = False


@dataclass(frozen=True)
class WorkerResult:
    """How a worker group ended. `failure` is returned and not raised, since a restart would only repeat it."""

    first_step: int
    last_step: int
    metrics: dict[str, float]
    failure: TrainingHealthError | ExportError | None = None


class Trainer:
    """The denoiser, its engine and its targets on one rank; needs an initialised torch.distributed. Collective throughout."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.family = family(spec.model)
        self.objective = get_objective(spec.objective)
        self.parameters = ObjectiveParameters(beta=spec.beta)
        shards = spec.shards or spec.plan.shards(spec.shard_size)
        self.reader = TargetReader(spec.targets, shards, spec.timeout_seconds, spec.run_id)
        self.trained: list[Entry] = []
        optimization = spec.optimization
        denoiser = self.family.load_denoiser(spec.model)
        if optimization.parameters == "lora":
            self.family.add_lora(denoiser, spec.lora, spec.seed)
        else:
            denoiser.requires_grad_(True)
        if optimization.gradient_checkpointing:
            self.family.checkpoint_gradients(denoiser)
        # A micro-batch larger than a rank's share would be filled up with padding.
        self.micro_batch = min(optimization.micro_batch, math.ceil(spec.plan.global_batch / self.world_size))
        self.engine = Engine(
            denoiser,
            optimization,
            micro_batch=self.micro_batch,
            accumulation=len(self.microbatches(0)),
            bfloat16=spec.model.dtype == "bfloat16",
        )

    def microbatches(self, step: int) -> list[Batch]:
        """What this rank computes in a step."""
        return self.spec.plan.rank_microbatches(step, self.rank, self.world_size, self.micro_batch)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; metrics are means over the planned items of all ranks, the same on each of them."""
        started, waited = time.perf_counter(), self.reader.waited_seconds
        planned = len(self.spec.plan.step(step).planned)
        totals: dict[str, Tensor] = {}
        for batch in self.microbatches(step):
            targets = self.reader.batch(batch, self.engine.device)
            losses, metrics = self._losses(targets)
            weights = targets.weights.to(losses.device)
            # DeepSpeed takes the mean over micro-batches and ranks; this makes it the mean over the planned items.
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
        """The objective's metrics on the held-out items, means over all of them and ranks."""
        plan = self.spec.held_out
        assert plan is not None
        totals: dict[str, Tensor] = {}
        for step in range(plan.steps):
            for batch in plan.rank_microbatches(step, self.rank, self.world_size, self.micro_batch):
                targets = self.reader.batch(batch, self.engine.device)
                losses, metrics = self._losses(targets)
                _add(totals, metrics, targets.weights.to(losses.device))
        return self._means(totals, plan.total_items)

    def export(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Write the trained weights, on rank 0, and compare what they do. Raises ExportError there."""
        targets = self.reader.batch(self.microbatches(self.spec.plan.steps - 1)[0], self.engine.device)
        x_t, timestep, conditioning = targets.inputs(DTYPES[self.spec.model.dtype], _PROBE_SAMPLES)
        output = probe_output(self.family, self.engine.model, x_t, timestep, conditioning)
        state = self.engine.trained_state()
        if self.rank == 0:
            probe = Probe(x_t, timestep, conditioning, output)
            spec, card = self.spec, model_card(self.spec, metrics)
            export_adapter(
                self.family, self.engine.denoiser, state, spec.model, folder, card, probe, spec.optimization.parameters
            )

    def snapshot(self, folder: Path) -> None:
        """Write the trained weights as they are now, on rank 0; whoever sees `folder` sees all of it."""
        held_out = {} if self.spec.held_out is None else self.held_out()
        state = self.engine.trained_state()
        if self.rank == 0:
            partial = folder.with_name(f".{folder.name}.partial")
            for left_over in (partial, folder):
                shutil.rmtree(left_over, ignore_errors=True)
            partial.mkdir(parents=True)
            write_weights(self.family, self.engine.denoiser, state, self.spec.model, partial, self.spec.optimization.parameters)
            (partial / HELD_OUT).write_text(json.dumps(held_out))
            partial.rename(folder)

    def _losses(self, targets: TargetBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics per sample, (B,)."""
        prediction = self.family.predict(self.engine.model, *targets.inputs(DTYPES[self.spec.model.dtype]))
        frozen = targets.frozen_outputs(self.objective, self.spec.omega_win, self.spec.omega_lose)
        return self.objective(prediction, frozen, self.parameters)

    def _means(self, totals: Mapping[str, Tensor], planned: int) -> dict[str, float]:
        stacked = torch.stack(list(totals.values())).double()
        distributed.all_reduce(stacked)
        return dict(zip(totals, (stacked / planned).tolist(), strict=True))

    def _slowest(self, seconds: float) -> float:
        longest = torch.tensor(seconds, device=self.engine.device, dtype=torch.float64)
        distributed.all_reduce(longest, distributed.ReduceOp.MAX)
        return float(longest)


def train_loop(config: dict[str, Any]) -> WorkerResult:
    """The function that Ray Train runs on every rank, with config["spec"] a TrainSpec."""
    spec: TrainSpec = config["spec"]
    torch.set_num_threads(max(1, int(spec.optimization.cpus_per_worker)))
    trainer = Trainer(spec)
    state = restore_checkpoint(trainer.engine)
    watch = HealthWatch(spec.optimization.spike_factor, spec.optimization.gradient_clip, state.gradient_norms)
    first, metrics, steps = state.step, state.metrics or {}, spec.plan.steps
    with ExitStack() as stack:
        loggers = _loggers(spec, first, stack) if trainer.rank == 0 else []
        for step in range(first, steps):
            metrics = trainer.step(step)
            for logger in loggers:
                logger.log(step, metrics)
            # The numbers are the same on all ranks, so all of them stop here or none.
            problem = watch.problem(step, metrics["loss"], metrics["gradient_norm"])
            if problem is not None:
                return WorkerResult(first, step, metrics, _health_error(problem))
            if (step + 1) % spec.optimization.checkpoint_every == 0 or step + 1 == steps:
                write_segment(spec.output, state.step, step + 1, trainer.rank, trainer.trained)
                trainer.trained.clear()
                state = TrainingState(step + 1, tuple(watch.norms), metrics)
                if spec.snapshots:  # before the checkpoint counts: a resume from it would not write the snapshot any more
                    trainer.snapshot(snapshot_folder(spec, step + 1))
                save_checkpoint(trainer.engine, state)
    try:
        trainer.export(spec.output / ADAPTER, metrics)
    except ExportError as error:
        return WorkerResult(first, steps, metrics, error)
    return WorkerResult(first, steps, metrics)


def snapshot_folder(spec: TrainSpec, step: int) -> Path:
    """Where the weights after `step` steps are left."""
    return spec.output / SNAPSHOTS / f"step-{step:08d}"


def model_card(spec: TrainSpec, metrics: Mapping[str, float]) -> dict[str, str]:
    """The lines of the model card."""
    expert = "expert" in get_objective(spec.objective).needs
    return {
        "objective": spec.objective,
        **({"omega_win": str(spec.omega_win), "omega_lose": str(spec.omega_lose), "beta": str(spec.beta)} if expert else {}),
        "steps": str(spec.plan.steps),
        "samples per step": str(spec.plan.global_batch),
        "training pictures": str(len(spec.plan.sample_ids)),
        "learning rate": str(spec.optimization.learning_rate),
        "seed": str(spec.seed),
        "targets": spec.targets.fingerprint,
        **spec.card,
        **{f"last step: {name}": f"{value:.4g}" for name, value in metrics.items()},
    }


class _MetricsFile:
    """metrics.jsonl, one line per step; each line is flushed, so that people can watch."""

    def __init__(self, path: Path, first: int) -> None:
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] < first] if path.exists() else []
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._stream = path.open("a", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        self._stream.close()


def _loggers(spec: TrainSpec, first: int, stack: ExitStack) -> list[StepLogger]:
    """What rank 0 logs to; forgets what was trained after the checkpoint, since it is trained again."""
    drop_after(spec.output, first)
    loggers: list[StepLogger] = [_MetricsFile(spec.output / METRICS, first)]
    if spec.tracking is not None:
        loggers.append(spec.tracking.start())
    for logger in loggers:
        stack.callback(logger.close)
    return loggers


def _health_error(problem: str) -> TrainingHealthError:
    checkpoint = ray.train.get_checkpoint()
    last = f"the last good checkpoint is {checkpoint.path}" if checkpoint else "no checkpoint was written yet"
    return TrainingHealthError(
        f"training stopped: {problem}; {last}; try a smaller learning_rate, or for a preference objective a smaller beta or omega"
    )


def _add(totals: dict[str, Tensor], metrics: Mapping[str, Tensor], weights: Tensor) -> None:
    """Add up metrics (B,) with their weights (B,)."""
    for name, values in metrics.items():
        totals[name] = totals.get(name, torch.zeros((), device=weights.device)) + (weights * values).sum()

"""Checkpoints through Ray Train: every rank saves its own part, every rank reports it, Ray merges the parts."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode
from torch import distributed

from cpo_ray.training.engine import Engine

_STATE = "training_state.json"


@dataclass(frozen=True)
class TrainingState:
    """What a resume needs beside the engine: the number of finished steps and the gradient norms that health is judged by."""

    step: int = 0
    gradient_norms: tuple[float, ...] = ()
    metrics: dict[str, float] | None = None


def save_checkpoint(engine: Engine, state: TrainingState) -> None:
    """Save and report; returns once the checkpoint counts. Called by all ranks (saving on one of them would hang)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine.save(folder)
        if distributed.get_rank() == 0:
            (folder / _STATE).write_text(json.dumps(asdict(state)))
        checkpoint = Checkpoint.from_directory(folder)
        ray.train.report({"step": state.step}, checkpoint=checkpoint, checkpoint_dir_name=f"step-{state.step:08d}")
    # A report is handed on by polling; a crash before that would lose a checkpoint whose ledger is written already.
    ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)


def restore_checkpoint(engine: Engine) -> TrainingState:
    """Load the latest checkpoint of this run, if there is one, into the engine."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return TrainingState()
    with checkpoint.as_directory() as name:
        engine.load(Path(name))
        values = json.loads((Path(name) / _STATE).read_text())
    return TrainingState(values["step"], tuple(values["gradient_norms"]), values["metrics"])

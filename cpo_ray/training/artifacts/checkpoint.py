"""Checkpoints through Ray Train: all ranks gather, rank 0 writes into Ray's storage, and a checkpoint counts once Ray has
committed it.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode
from torch import distributed

from cpo_ray.core.files import read_json, write_json

if TYPE_CHECKING:
    from cpo_ray.training.engine.engine import Engine

_STATE = "training_state.json"


@dataclass(frozen=True)
class TrainingState:
    """What a resume needs beside the engine: the number of finished steps, and the gradient norms that health is judged by."""

    step: int = 0
    gradient_norms: tuple[float, ...] = ()
    metrics: dict[str, float] | None = None


def save_checkpoint(engine: Engine, state: TrainingState, storage: Path) -> None:
    """Save below `storage`, the run's folder of Ray Train, and report. Returns once the checkpoint counts. Collective."""
    # Written in place, since a temporary copy would take tens of gigabytes more.
    folder = storage / f"step-{state.step:08d}"
    if distributed.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # left by a crash before the checkpoint counted
        folder.mkdir(parents=True)
        write_json(folder / _STATE, asdict(state))
    engine.save(folder)
    checkpoint = Checkpoint.from_directory(folder) if distributed.get_rank() == 0 else None
    ray.train.report({"step": state.step}, checkpoint=checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
    # Ray hands reports on by polling. A crash before that would lose a checkpoint whose ledger is already written.
    ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)


def restore_checkpoint(engine: Engine) -> TrainingState:
    """Load the latest checkpoint of this run into the engine, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return TrainingState()
    with checkpoint.as_directory() as name:
        engine.load(Path(name))
        values = read_json(Path(name) / _STATE)
    return TrainingState(values["step"], tuple(values["gradient_norms"]), values["metrics"])

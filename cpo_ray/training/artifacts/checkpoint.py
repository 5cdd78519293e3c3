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
from safetensors import SafetensorError, safe_open
from torch import distributed

from cpo_ray.core.files import DamagedFileError, read_json, write_json

if TYPE_CHECKING:
    from cpo_ray.training.engine.engine import Engine

_STATE = "training_state.json"
#: Ray Train's own list of the checkpoints that count.
_LISTED = "checkpoint_manager_snapshot.json"


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


def checkpoints(storage: Path) -> list[tuple[int, Path]]:
    """Return the complete checkpoints below `storage` with their steps, the oldest first; files are opened and not read."""
    steps = ((_step_of(folder), folder) for folder in sorted(storage.glob("step-*")))
    return [(step, folder) for step, folder in steps if step is not None]


def step_back(storage: Path, whole_until: int | None = None) -> str | None:
    """Have Ray Train resume from the newest checkpoint that is complete, if one that it lists was cut or removed.

    With `whole_until`, also from none after that step, since what was trained after it is not recorded, if there is an older one.
    Returns a sentence if anything had to change.
    """
    record = storage / _LISTED
    if not record.exists():
        return None
    complete = checkpoints(storage)
    recorded = [(step, folder) for step, folder in complete if whole_until is None or step <= whole_until]
    complete = recorded or complete
    try:
        listed = [result["checkpoint_dir_name"] for result in read_json(record)["checkpoint_results"]]
    except (DamagedFileError, KeyError, TypeError):
        listed = None
    names = [folder.name for _, folder in complete]
    if listed is not None and set(listed) <= set(names):
        return None
    if not complete:
        record.unlink()
        return f"no checkpoint in {storage} is complete any more, so training starts again at its first step"
    kept = [name for name in names if listed is None or name in listed] or names
    write_json(record, _listing(kept))
    what = f"Ray Train's list {record} was cut" if listed is None else f"{storage / listed[-1]} was cut, removed or not recorded"
    return f"{what}; training goes on from the older checkpoint {kept[-1]}"


def _step_of(folder: Path) -> int | None:
    """Return the number of steps that a checkpoint has finished; None if it is not complete."""
    files = list(folder.glob("*.safetensors"))
    try:
        for file in files:
            with safe_open(file, "pt"):  # compares the size with the header
                pass
        return int(read_json(folder / _STATE)["step"]) if files else None
    except (OSError, DamagedFileError, SafetensorError, KeyError, TypeError):
        return None


def _listing(names: list[str]) -> dict[str, object]:
    """Return Ray Train's list of checkpoints, in its own form (ray.train.v2, `_CheckpointManagerState`)."""
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    empty = ("pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names")
    ended = ("timed_out_validation_checkpoint_dir_names", "failed_validation_checkpoint_dir_names")
    return {
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1],
        "current_report_index": len(names),
        **{key: [] for key in (*empty, *ended)},
    }

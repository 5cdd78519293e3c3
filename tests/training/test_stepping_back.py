"""What a resume does with checkpoints, ledgers and records that were cut, and with a death after the export. Without Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.train import CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from safetensors.torch import save_file
from support.tiny_training import make_spec

from cpo_ray import stages
from cpo_ray.config import Model
from cpo_ray.core.files import DamagedFileError, write_json
from cpo_ray.core.plan import Plan
from cpo_ray.targets.producer import ProductionReport
from cpo_ray.training import driver
from cpo_ray.training.artifacts.checkpoint import checkpoints, step_back
from cpo_ray.training.artifacts.ledger import LedgerEntry, check_ledger, ledger_problem, whole_until, write_segment
from cpo_ray.training.driver import TrainResult

PLAN = Plan.of_epochs(["a", "b", "c", "d", "e"], seed=0, global_batch=4, draws=2, epochs=2)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Ray Train's folder of a run with the checkpoints of steps 4 and 6."""
    storage = tmp_path / "run"
    for step in (4, 6):
        folder = storage / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_json(folder / "training_state.json", {"step": step, "gradient_norms": [], "metrics": None})
        save_file({"weights/a": torch.zeros(64)}, folder / "engine.safetensors")
    states = [{"version": 0, "checkpoint_dir_name": f"step-{step:08d}", "metrics": {"step": step}} for step in (4, 6)]
    lists = ("pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names")
    more = ("timed_out_validation_checkpoint_dir_names", "failed_validation_checkpoint_dir_names")
    write_json(
        storage / "checkpoint_manager_snapshot.json",
        {"checkpoint_results": states, "checkpoint_report_indices": [1, 2], "latest_checkpoint_result": states[1]}
        | {"current_report_index": 3, **{key: [] for key in lists + more}},
    )
    return storage


def resumed_from(storage: Path) -> str | None:
    """What Ray Train's own checkpoint manager would hand to the workers."""
    manager = CheckpointManager(CheckpointConfig(num_to_keep=2), StorageContext(str(storage.parent), storage.name))
    latest = manager.latest_checkpoint_result
    return Path(latest.checkpoint.path).name if latest else None


def cut_weights(storage: Path) -> None:
    file = storage / "step-00000006" / "engine.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def cut_state(storage: Path) -> None:
    (storage / "step-00000006" / "training_state.json").write_text('{"step": 6, "gra')


def remove(storage: Path) -> None:
    shutil.rmtree(storage / "step-00000006")


def remove_weights(storage: Path) -> None:
    (storage / "step-00000006" / "engine.safetensors").unlink()


def test_whole_checkpoints_stay_as_they_are(storage: Path) -> None:
    before = (storage / "checkpoint_manager_snapshot.json").read_bytes()
    assert step_back(storage) is None and resumed_from(storage) == "step-00000006"
    assert (storage / "checkpoint_manager_snapshot.json").read_bytes() == before
    assert [step for step, _ in checkpoints(storage)] == [4, 6]
    assert step_back(storage / "nothing") is None


@pytest.mark.parametrize("damage", [cut_weights, cut_state, remove, remove_weights])
def test_the_older_checkpoint_takes_the_place_of_a_damaged_one(damage: Callable[[Path], None], storage: Path) -> None:
    damage(storage)
    told = str(step_back(storage))
    assert told.startswith(f"{storage}/step-00000006 was cut, removed") and told.endswith("step-00000004")
    assert resumed_from(storage) == "step-00000004"
    assert step_back(storage) is None


def test_a_cut_list_is_made_again_from_the_checkpoints(storage: Path) -> None:
    record = storage / "checkpoint_manager_snapshot.json"
    record.write_bytes(record.read_bytes()[:40])
    assert "was cut; training goes on" in str(step_back(storage))
    assert resumed_from(storage) == "step-00000006"


def test_training_starts_again_where_no_checkpoint_is_left(storage: Path) -> None:
    for folder in storage.glob("step-*"):
        shutil.rmtree(folder)
    assert "starts again at its first step" in str(step_back(storage))
    assert resumed_from(storage) is None


def test_a_resume_goes_back_behind_a_cut_ledger_if_it_can(storage: Path) -> None:
    assert "step-00000006 was" in str(step_back(storage, whole_until=5))
    assert resumed_from(storage) == "step-00000004"
    assert step_back(storage, whole_until=2) is None, "there is no checkpoint before"


def entries(first: int, last: int) -> list[LedgerEntry]:
    return [(step, item) for step in range(first, last) for item in PLAN.step(step).planned]


def test_an_empty_ledger_is_no_sign_of_a_wrong_training(tmp_path: Path) -> None:
    write_segment(tmp_path, 0, 1, 0, entries(0, 1))
    path = write_segment(tmp_path, 1, 3, 0, entries(1, 3))
    write_segment(tmp_path, 1, 3, 1, [])  # a rank that had nothing but padding
    assert ledger_problem(PLAN, tmp_path) is None and whole_until(tmp_path) is None
    for content in (b"", path.read_bytes()[:-5]):
        path.write_bytes(content)
        told = str(ledger_problem(PLAN, tmp_path))
        assert told.startswith(f"{path} was cut after it was written") and "do not trust" not in told
        assert whole_until(tmp_path) == 1
    write_segment(tmp_path, 0, 1, 1, entries(0, 1)[:1])
    assert "1 were trained in excess" in str(ledger_problem(PLAN, tmp_path)), "other faults are not hidden by it"
    assert check_ledger(PLAN, []) is not None


@pytest.mark.parametrize("name", ["training.json", "result.json"])
def test_a_cut_record_is_a_sentence_that_names_it(name: str, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, Model(family="sdxl", base="base"), optimization={}, resume=True)
    write_json(spec.output / "training.json", driver._settings(spec))
    write_json(spec.output / "result.json", {"steps": 4, "trained_steps": 4, "metrics": {}, "ledger_problem": None})
    assert driver.finished(spec) is not None
    (spec.output / name).write_text('{"model')
    with pytest.raises(DamagedFileError, match=f"{name} is not JSON .*delete it and start again"):
        driver.finished(spec)


class Tracker(SimpleNamespace):
    """Takes what it is told, as long as it answers."""

    def log_adapter(self, adapter: Path, base: str, revision: str | None) -> bool:
        self.calls.append("adapter")
        return bool(self.answers)

    def finish(self) -> bool:
        self.calls.append("finish")
        return bool(self.answers)


def test_a_run_that_died_after_the_export_is_finished_and_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, tracker = list[str](), Tracker(calls=[], answers=False)
    model = Model(family="sdxl", base="base")
    spec = make_spec(tmp_path, model, optimization={}, output=tmp_path / "cpo_s")
    (spec.output / "adapter").mkdir(parents=True)  # exported, and then the driver died
    plan = SimpleNamespace(steps=4, global_batch=6, sample_ids=["a"], shards=lambda size: [])
    training: Any = SimpleNamespace(name="cpo_s", plan=plan, objective=spec.objective, frozen=None)
    config = SimpleNamespace(targets=SimpleNamespace(shard_size=4, folder=tmp_path), model=model)
    run: Any = SimpleNamespace(config=config, folder=tmp_path, say=said.append, told_of=str, resume=True)
    run.track = lambda *_: tracker
    trained: list[str] = []

    def train(*_: object) -> TrainResult:
        trained.append("trained")
        result: dict[str, Any] = {"steps": 4, "trained_steps": 0, "metrics": {}, "ledger_problem": "the ledger differs"}
        write_json(spec.output / "result.json", result)
        return TrainResult(spec.output / "adapter", **result)

    monkeypatch.setattr(stages, "training_spec", lambda *_: spec)
    monkeypatch.setattr(stages, "target_store", lambda *_: None)
    monkeypatch.setattr(stages, "base_source", lambda _: "base")
    monkeypatch.setattr(stages, "_beside", lambda *_: nullcontext((None, lambda: ProductionReport(0, 0, 0, 0, 0.0, 0))))
    monkeypatch.setattr(stages, "train", train)
    stages.train_on_targets(run, training)
    assert trained == ["trained"] and not (spec.output / "done.json").exists()
    assert any("WARNING: the ledger differs" in sentence for sentence in said)
    assert "--resume sends what it lacks" in said[-1]
    tracker.answers = True
    stages.train_on_targets(run, training)
    assert trained == ["trained"], "only what was left is done"
    assert json.loads((spec.output / "done.json").read_text()) == {"steps": 4}
    stages.train_on_targets(run, training)
    assert said[-1] == "cpo_s: already trained" and tracker.calls == ["adapter", "finish"] * 2

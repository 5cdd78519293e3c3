"""MLflow as it is: a real sqlite store, real processes, a port where nobody listens."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import chdir
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from safetensors.numpy import save_file
from support.ranks import Ranks
from torch import distributed

from cpo_ray.config import ConfigError, Tracking
from cpo_ray.tracking import (
    FALLBACK,
    Experiment,
    RunDescription,
    RunTracker,
    git_commit,
    open_experiment,
    resolve_uri,
    start_run,
    ui_command,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """An experiment in an sqlite store, and the output folder; making the store's tables takes seconds."""
    output = tmp_path_factory.mktemp("output with a blank")
    experiment = open_experiment(resolve_uri(Tracking(), output), "test", output / "mlartifacts")
    assert experiment.id is not None
    return experiment, output


def begin(store: tuple[Experiment, Path], name: str, parent: str | None = None, *, resume: bool = False) -> RunTracker:
    experiment, output = store
    description = RunDescription(
        config_text="[run]\nseed = 3\n",
        params={"run": {"seed": 3}, "many": {str(number): number for number in range(150)}},
        tags={"hierarchy_hash": "abc"},
        note="cpo_s, beta 1000: 3 steps of 8",
    )
    return start_run(experiment, name, output / name, description, parent, resume)


def test_a_run_comes_back_as_it_was_logged(store: tuple[Experiment, Path], tmp_path: Path) -> None:
    tracker = begin(store, "round-trip")
    with tracker.start() as live:
        for step in range(1200):  # more than one call of a thousand
            live.log(step, {"loss": 1 / (step + 1)})
    tracker.log_pictures("grid", np.full((4, 6, 3), 200, np.uint8), step=7)
    report = tmp_path / "report.html"
    report.write_text("<p>fine</p>")
    tracker.log_report(report)
    tracker.finish()

    assert tracker.run_id is not None
    client = MlflowClient(tracker.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["run.seed"] == "3" and run.data.params["many.149"] == "149"
    assert run.data.tags["hierarchy_hash"] == "abc"
    assert run.data.tags["mlflow.note.content"] == "cpo_s, beta 1000: 3 steps of 8"
    history = client.get_metric_history(tracker.run_id, "loss")
    assert {entry.step: entry.value for entry in history} == {step: 1 / (step + 1) for step in range(1200)}
    folder = store[1] / "mlartifacts" / tracker.run_id / "artifacts"
    assert (folder / "config.toml").read_text() == "[run]\nseed = 3\n"
    assert (folder / "report.html").read_text() == "<p>fine</p>"
    assert any(path.suffix == ".png" for path in (folder / "images").iterdir())
    assert not (tracker.folder / FALLBACK).exists()


def _log_elsewhere(tracker: RunTracker, folder: Path) -> None:
    if distributed.get_rank() == 0:
        with chdir(folder), tracker.start() as live:  # as a Ray worker, which runs in a folder of its own
            live.log(5, {"loss": 0.25})


def test_a_handle_logs_from_another_process(store: tuple[Experiment, Path], four: Ranks, tmp_path: Path) -> None:
    tracker = begin(store, "elsewhere")
    four(_log_elsewhere, tracker, tmp_path)
    assert tracker.run_id is not None
    (entry,) = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "loss")
    assert (entry.step, entry.value) == (5, 0.25)
    assert list(tmp_path.iterdir()) == []


def test_runs_nest_and_a_resumed_run_is_the_same_one(store: tuple[Experiment, Path]) -> None:
    parent = begin(store, "whole")
    child = begin(store, "stage", parent.run_id)
    parent.finish("FAILED")
    assert child.run_id is not None
    assert MlflowClient(store[0].uri).get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    again = begin(store, "whole", resume=True)
    assert again.run_id == parent.run_id
    assert MlflowClient(store[0].uri).get_run(parent.run_id).info.status == "RUNNING"
    assert begin(store, "stage", again.run_id, resume=True).run_id == child.run_id
    assert begin(store, "stage", resume=True).run_id != child.run_id  # that name, but not inside that parent
    assert begin(store, "whole").run_id != parent.run_id


def test_an_adapter_comes_back_with_its_base(store: tuple[Experiment, Path], tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    base.mkdir()
    save_file({"unet.to_q.lora_A.weight": np.ones((2, 3), np.float32)}, str(adapter / "pytorch_lora_weights.safetensors"))
    (adapter / "README.md").write_text("card")
    tracker = begin(store, "adapter")
    tracker.log_adapter(adapter, str(base))
    folder = store[1] / "mlartifacts" / str(tracker.run_id) / "artifacts" / "adapter"
    loaded = mlflow.diffusers.load_model(str(folder))
    assert loaded.base_model == str(base)
    assert (
        Path(loaded.adapter_path, "pytorch_lora_weights.safetensors").read_bytes()
        == (adapter / "pytorch_lora_weights.safetensors").read_bytes()
    )
    pinned = begin(store, "pinned")
    pinned.log_adapter(adapter, "somebody/some-model", "1a2b")
    (adapter / "README.md").write_text("card with an evaluation")
    tracker.log_card(adapter)
    pinned.log_card(adapter, "1a2b")
    artifacts = store[1] / "mlartifacts" / str(pinned.run_id) / "artifacts" / "adapter"
    cards = [*folder.rglob("README.md"), *artifacts.rglob("README.md")]
    assert [card.read_text() for card in cards] == ["card with an evaluation"] * 2


def _closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_was_never_there_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"http://127.0.0.1:{_closed_port()}"
    begun = time.monotonic()
    experiment = open_experiment(uri, "test", tmp_path)
    assert experiment.id is None
    tracker = begin((experiment, tmp_path), "alone")
    with tracker.start() as live:
        live.log(0, {"loss": 0.5})
        live.log(1, {"loss": float("nan")})
    tracker.log_pictures("grid", np.zeros((2, 2, 3), np.uint8), step=0)
    tracker.finish()
    assert time.monotonic() - begun < 10
    kept = [json.loads(line) for line in (tmp_path / "alone" / FALLBACK).read_text().splitlines()]
    assert [line["step"] for line in kept] == [0, 1] and kept[0]["metrics"] == {"loss": 0.5}
    assert len([record for record in caplog.records if record.name == "cpo_ray.tracking"]) == 1


def test_a_server_that_dies_costs_one_warning_and_no_metric(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = RunTracker(Experiment(f"http://127.0.0.1:{_closed_port()}", "1"), "0" * 32, tmp_path / "run")
    begun = time.monotonic()
    with tracker.start() as live:
        for step in range(50):
            live.log(step, {"loss": float(step)})
        assert time.monotonic() - begun < 1, "a step waited for the server"
        time.sleep(3)  # the first batch fails meanwhile
        live.log(50, {"loss": 50.0})
    assert time.monotonic() - begun < 10
    lines = (tmp_path / "run" / FALLBACK).read_text().splitlines()
    assert [json.loads(line)["metrics"]["loss"] for line in lines] == list(range(51))
    warnings = [record.getMessage() for record in caplog.records if record.name == "cpo_ray.tracking"]
    assert len(warnings) == 1 and FALLBACK in warnings[0]


def test_a_store_that_is_back_gets_what_it_missed(store: tuple[Experiment, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    tracker = begin(store, "away")
    assert tracker.run_id is not None
    client, fallback = MlflowClient(tracker.uri), tracker.folder / FALLBACK

    def steps() -> list[int]:
        return [entry.step for entry in client.get_metric_history(str(tracker.run_id), "loss")]

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        with tracker.start() as live:
            live.log(0, {"loss": 0.5})
        assert not tracker.finish() and fallback.with_name(f"{FALLBACK}.sending").exists()
        with tracker.start() as live:
            live.log(1, {"loss": 0.25})
    assert steps() == [] and client.get_run(tracker.run_id).info.status == "RUNNING"
    assert tracker.finish() and sorted(steps()) == [0, 1]
    assert list(tracker.folder.iterdir()) == []

    # A run that could not even begin left this.
    fallback.write_text('{"run_id": null, "step": 2, "timestamp": 5, "metrics": {"loss": 0.1}}\n{"run_id": nu')
    begin(store, "away", resume=True)
    assert sorted(steps()) == [0, 1, 2] and not fallback.exists()


def test_a_run_that_ends_too_early_leaves_nothing_running(store: tuple[Experiment, Path]) -> None:
    whole = begin(store, "stopped")
    done, left = begin(store, "expert", whole.run_id), begin(store, "cpo_s", whole.run_id)
    done.finish()
    whole.abandon("KILLED")
    client = MlflowClient(whole.uri)
    statuses = [client.get_run(str(tracker.run_id)).info.status for tracker in (whole, done, left)]
    assert statuses == ["KILLED", "FINISHED", "KILLED"]


def _open(uri: str, folder: Path) -> str | None:
    distributed.barrier()
    return open_experiment(uri, "shared", folder).id


def test_processes_may_create_the_same_experiment_at_once(four: Ranks, tmp_path: Path) -> None:
    found = set(four(_open, resolve_uri(Tracking(), tmp_path), tmp_path))
    assert len(found) == 1 and None not in found


def test_a_deleted_experiment_is_said_to_be_deleted(store: tuple[Experiment, Path]) -> None:
    uri, output = store[0].uri, store[1]
    MlflowClient(uri).delete_experiment(str(open_experiment(uri, "old", output).id))
    with pytest.raises(ConfigError, match="'old' was deleted"):
        open_experiment(uri, "old", output)


def test_uris_mean_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(Tracking(), Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri(Tracking(uri="sqlite:///a.db"), Path("runs")) == f"sqlite:///{tmp_path}/a.db"
    assert resolve_uri(Tracking(uri="http://host:5000"), Path("runs")) == "http://host:5000"
    assert resolve_uri(Tracking(uri="sqlite:///~/a.db"), Path("runs")) == f"sqlite:///{Path.home()}/a.db"
    with pytest.raises(ConfigError, match="'file:///runs', which is not an MLflow store"):
        resolve_uri(Tracking(uri="file:///runs"), Path("runs"))


def test_a_store_lies_where_it_should_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "50%41 x?y #1"
    experiment = open_experiment(resolve_uri(Tracking(), folder), "cpo", folder / "mlartifacts")
    assert experiment.id is not None and (folder / "mlflow.db").is_file() and (folder / "mlflow.db.lock").is_file()
    client = MlflowClient(experiment.uri)
    run = client.create_run(experiment.id).info.run_id
    (tmp_path / "a.txt").write_text("x")
    client.log_artifact(run, str(tmp_path / "a.txt"))
    assert list(folder.rglob("mlartifacts/**/a.txt"))


def test_the_ui_listens_on_this_machine_only() -> None:
    command = ui_command("sqlite:////a folder/mlflow.db")
    assert "--host 127.0.0.1" in command and "'sqlite:////a folder/mlflow.db'" in command
    assert ui_command("http://host:5000").endswith("-m webbrowser http://host:5000")


def test_the_commit_is_not_made_up(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "unknown"
    identity = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert git_commit(tmp_path) == "unknown"  # no commit yet
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "new").mkdir()
    assert git_commit(tmp_path / "new") == "unknown"  # not the top of this repository
    (tmp_path / "new" / "file").write_text("x")
    assert git_commit(tmp_path) == f"{commit}-dirty"

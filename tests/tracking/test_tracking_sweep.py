"""Many trials that start at once, and the best one registered: on an sqlite file and on a real MLflow server on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from safetensors.numpy import save_file
from support.ranks import Ranks
from torch import distributed

from cpo_ray.config import Tracking
from cpo_ray.tracking import FALLBACK, Experiment, RunDescription, RunTracker, open_experiment, resolve_uri, start_run

pytestmark = pytest.mark.slow

TRIALS, STEPS = 4, 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of our own."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        # It runs no jobs here, for which it would start six more processes.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"the server did not answer: {log.read_text()[-2000:]}")


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "server":
        return str(request.getfixturevalue("server"))
    return resolve_uri(Tracking(), tmp_path)


def _begin(uri: str, name: str, folder: Path, parent: str | None) -> RunTracker:
    """As a trial does: the experiment is looked up anew in each process."""
    experiment = open_experiment(uri, "sweep", folder / "mlartifacts")
    assert experiment.id is not None
    params = {"preference": {"omega_win": 2.0}, "many": {str(n): n for n in range(60)}}
    return start_run(experiment, name, folder / name, RunDescription("x = 1\n", params, tags={}), parent)


def _trial(uri: str, folder: Path, parent: str) -> str | None:
    number = distributed.get_rank()
    distributed.barrier()
    tracker = _begin(uri, f"trial-{number}", folder, parent)
    with tracker.start() as logger:
        for step in range(STEPS):
            logger.log(step, {"negatives": number + step / 100})
    tracker.finish()
    return tracker.run_id


def test_trials_that_start_at_once_are_all_there_with_all_their_metrics(uri: str, four: Ranks, tmp_path: Path) -> None:
    parent = _begin(uri, "sweep", tmp_path, None)
    assert parent.run_id is not None
    started = set(four(_trial, uri, tmp_path, parent.run_id))
    assert None not in started and len(started) == TRIALS
    assert not list(tmp_path.rglob(FALLBACK)), "metrics went to the file that is for a dead store"
    client = MlflowClient(uri)
    filter_string = f"tags.mlflow.parentRunId = '{parent.run_id}'"
    runs = client.search_runs([str(parent.experiment.id)], filter_string)
    assert {run.info.run_name for run in runs} == {f"trial-{number}" for number in range(TRIALS)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        number = int(str(run.info.run_name).removeprefix("trial-"))
        history = client.get_metric_history(run.info.run_id, "negatives")
        assert {entry.step: entry.value for entry in history} == {step: number + step / 100 for step in range(STEPS)}
        assert run.data.params["many.59"] == "59"


def test_the_alias_points_to_the_best_trial_and_moves_with_it(uri: str, tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    base.mkdir()
    save_file({"unet.to_q.lora_A.weight": np.ones((2, 3), np.float32)}, str(adapter / "pytorch_lora_weights.safetensors"))
    trackers = [_begin(uri, name, tmp_path, None) for name in ("first", "second")]
    for tracker in trackers:
        tracker.log_adapter(adapter, str(base))
        tracker.register("toy-sweep-adapter", "best")
    client = MlflowClient(uri)
    best = client.get_model_version_by_alias("toy-sweep-adapter", "best")
    assert best.run_id == trackers[1].run_id

    trackers[0].register("toy-sweep-adapter", "best")  # a run that is registered already gets no second version
    best = client.get_model_version_by_alias("toy-sweep-adapter", "best")
    assert best.run_id == trackers[0].run_id
    assert len(client.search_model_versions("name='toy-sweep-adapter'")) == 2

    whole = tmp_path / "whole"  # a denoiser in full stays where it is, and is no version
    (whole / "unet").mkdir(parents=True)
    third = _begin(uri, "third", tmp_path, None)
    third.log_adapter(whole, str(base))
    third.log_card(whole)
    third.register("toy-sweep-adapter", "best")
    assert not client.list_artifacts(str(third.run_id), "adapter")
    assert client.get_model_version_by_alias("toy-sweep-adapter", "best").run_id == trackers[0].run_id

    trackers[0].tag("best", "true")
    assert client.get_run(str(trackers[0].run_id)).data.tags["best"] == "true"


def test_a_trial_without_a_store_goes_on(tmp_path: Path) -> None:
    tracker = RunTracker(Experiment("http://127.0.0.1:9", None), None, tmp_path)
    tracker.tag("best", "true")
    tracker.register("model", "best")
    replace(tracker, run_id=None).finish()

"""MLflow: an sqlite store in the output folder by default, a server by URI. The only module that imports mlflow.

The driver opens the experiment and its runs; rank 0 logs metrics through a handle that travels to its process.
Whatever happens to the store, training goes on: metrics it did not take are kept in `tracking-fallback.jsonl` in the
run's folder, everything else is a file there already.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpo_ray.config import ConfigError, Tracking

# Read by mlflow at each use. Nothing here is ever unpickled, and nobody waits two minutes and seven retries for a
# server that is gone, which are mlflow's own defaults.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

import mlflow.diffusers
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

logging.getLogger("alembic").setLevel(logging.WARNING)  # one line for each of some sixty table versions
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)  # torch's "+cpu" is no news
logger = logging.getLogger(__name__)

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name
FALLBACK = "tracking-fallback.jsonl"
SEND_EVERY_SECONDS = 2.0
RETRY_AFTER_SECONDS = 60.0
CLOSE_SECONDS = 60.0
_METRICS_PER_CALL = 1000  # limits of MLflow's interface
_PARAMS_PER_CALL = 100
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")

Status = Literal["FINISHED", "FAILED", "KILLED"]


def resolve_uri(tracking: Tracking, output: Path) -> str:
    """The tracking URI that means the same in every process: without one in the section, an sqlite file in `output`.

    Raises ConfigError for a URI that MLflow cannot use as a store.
    """
    if tracking.uri is None:
        return f"sqlite:///{output.absolute() / 'mlflow.db'}"
    scheme = urlsplit(tracking.uri).scheme.split("+")[0]
    if scheme not in _SCHEMES and tracking.uri != "databricks":
        raise ConfigError(
            f"tracking.uri is {tracking.uri!r}, which is no MLflow store; give the address of a server "
            "(http://host:5000) or a database (sqlite:////folder/mlflow.db), or leave it out"
        )
    # Workers run in another folder than the driver, where a relative path would be another database.
    file = tracking.uri.removeprefix("sqlite:///")
    return tracking.uri if file == tracking.uri else f"sqlite:///{Path(file).absolute()}"


def open_experiment(uri: str, name: str, artifact_root: Path) -> str | None:
    """The id of the experiment `name`, created when there is none; None when the store cannot be reached.

    Any number of processes may call this at once. A local store keeps artifacts below `artifact_root`, whatever
    folder a process runs in; a server decides for itself. Raises ConfigError if the experiment was deleted.
    """
    with _forgiving("the experiment"), _sole_opener(uri):
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            served = uri.startswith(("http", "databricks"))
            try:
                return client.create_experiment(name, None if served else artifact_root.absolute().as_uri())
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Another process was faster between the two calls.
                experiment = client.get_experiment_by_name(name)
                assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            raise ConfigError(f"the MLflow experiment {name!r} was deleted; restore it or choose another tracking.experiment")
        return experiment.experiment_id
    return None


@contextmanager
def _sole_opener(uri: str) -> Iterator[None]:
    """One process at a time opens an sqlite file: two that make its tables at once fail, in spite of mlflow's own lock."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class RunTracker:
    """A run in the store: text only, so that it can be sent to any process."""

    uri: str
    experiment_id: str | None
    run_id: str | None
    """None when the store could not be reached as the run began; then nothing tries to reach it again."""
    folder: Path
    """The run's own folder, for what the store does not take."""

    def start(self) -> MetricLogger:
        """A live logger for this process; close it or use it in a `with`."""
        return MetricLogger(self)

    def log_pictures(self, name: str, picture: Path | NDArray[np.uint8], step: int) -> None:
        """Show a picture file, or an (H, W, 3) array of 0 to 255, under `name` at a step."""
        if self.run_id is None:
            return
        with _forgiving(f"the pictures {name!r}"):
            image = Image.open(picture) if isinstance(picture, Path) else picture
            MlflowClient(self.uri).log_image(self.run_id, image, key=name, step=step)

    def log_adapter(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Log an exported LoRA adapter as the artifact `adapter`, for `mlflow.diffusers.load_model`.

        `base` is the hub id or the folder of the base pipeline. With a pinned `revision` only the files are logged:
        mlflow would write down the newest revision of the hub id as the one that the adapter belongs to. A whole denoiser,
        of many gigabytes, stays where it is.
        """
        if self.run_id is None or not (folder / LORA_WEIGHTS).exists():
            return
        with _forgiving("the adapter"), tempfile.TemporaryDirectory() as temporary:
            model = folder
            if revision is None:
                model = Path(temporary) / "adapter"
                base = str(Path(base).absolute()) if Path(base).is_dir() else base
                mlflow.diffusers.save_model(str(folder), str(model), base_model=base)
            MlflowClient(self.uri).log_artifacts(self.run_id, str(model), "adapter")

    def log_card(self, folder: Path, revision: str | None = None) -> None:
        """Log the model card of an adapter anew; the arguments are those that `log_adapter` had."""
        if self.run_id is None or not (folder / LORA_WEIGHTS).exists():
            return
        with _forgiving("the model card"):
            place = "adapter" if revision else "adapter/adapter_weights"  # mlflow's name in a model
            MlflowClient(self.uri).log_artifact(self.run_id, str(folder / "README.md"), place)

    def log_report(self, path: Path) -> None:
        """Log a finished file, such as the report, under its own name."""
        if self.run_id is None:
            return
        with _forgiving(f"the report {path}"):
            MlflowClient(self.uri).log_artifact(self.run_id, str(path))

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        if self.run_id is None:
            return
        with _forgiving(f"the tag {name!r}"):
            MlflowClient(self.uri).set_tag(self.run_id, name, value)

    def register(self, model: str, alias: str) -> None:
        """Make the run's adapter, if it has logged one, a version of the registered `model`, and the only one with the alias."""
        if self.run_id is None:
            return
        with _forgiving(f"the model {model!r}"):
            client = MlflowClient(self.uri)
            if not client.list_artifacts(self.run_id, "adapter"):
                return
            try:
                client.create_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            known = [found for found in client.search_model_versions(f"name='{model}'") if found.run_id == self.run_id]
            source = f"{client.get_run(self.run_id).info.artifact_uri}/adapter"
            registered = known[0] if known else client.create_model_version(model, source, self.run_id)
            client.set_registered_model_alias(model, alias, registered.version)

    def reopen(self) -> None:
        """Go on with a run that was closed."""
        if self.run_id is None:
            return
        with _forgiving("the run again"):
            MlflowClient(self.uri).update_run(self.run_id, status="RUNNING")

    def finish(self, status: Status = "FINISHED") -> None:
        """Close the run in the store."""
        if self.run_id is None:
            return
        with _forgiving("the end of the run"):
            MlflowClient(self.uri).set_terminated(self.run_id, status)


def start_run(
    uri: str,
    experiment_id: str | None,
    name: str,
    folder: Path,
    *,
    config_text: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent_run_id: str | None = None,
    resume: bool = False,
) -> RunTracker:
    """Begin the run `name`, inside another with `parent_run_id`; with `resume` go on with the latest one of that name.

    `params` may be nested (`config.model_dump(mode="json")`); their names are joined with dots. `config_text` becomes
    the artifact config.toml. `tags` say what was trained on: data hash, hierarchy hash, git commit.
    Without an experiment id, or when the store does not answer, the tracker writes to `folder` only.
    """
    run_id: str | None = None
    if experiment_id is not None:
        with _forgiving(f"the run {name!r}"):
            client = MlflowClient(uri)
            if resume:
                run_id = _latest_run(client, experiment_id, name, parent_run_id)
            if run_id is None:
                parent = {MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}
                run_id = client.create_run(experiment_id, tags={**tags, **parent}, run_name=name).info.run_id
                _log_params(client, run_id, params)
            else:  # parameters of a run cannot change in MLflow
                client.update_run(run_id, status="RUNNING")
            client.log_text(run_id, config_text, "config.toml")
    return RunTracker(uri, experiment_id, run_id, folder)


class Record(NamedTuple):
    """The metrics of one step, and when they were logged in milliseconds since 1970."""

    step: int
    timestamp: int
    metrics: dict[str, float]


class MetricLogger:
    """Metrics of one process, sent in batches by a thread of its own, so that no step waits for the store."""

    def __init__(self, tracker: RunTracker) -> None:
        self._tracker = tracker
        self._records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._warned = False
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._send_until_closed, name="tracking", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step; returns at once and never raises for the store's sake."""
        values = {key: float(value) for key, value in metrics.items()}
        self._records.put(Record(step, time.time_ns() // 1_000_000, values))

    def close(self) -> None:
        """Send what is left; a store that does not answer holds this up for a minute at most."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_until_closed(self) -> None:
        while not self._closing.wait(SEND_EVERY_SECONDS):
            self._send(self._waiting())
        self._send(self._waiting())

    def _waiting(self) -> list[Record]:
        return [self._records.get() for _ in range(self._records.qsize())]

    def _send(self, records: list[Record]) -> None:
        run_id = self._tracker.run_id
        if run_id is None or time.monotonic() < self._retry_at:
            return self._keep(records)
        entries = [Metric(key, value, at, step) for step, at, metrics in records for key, value in metrics.items()]
        try:
            client = MlflowClient(self._tracker.uri)
            for start in range(0, len(entries), _METRICS_PER_CALL):
                client.log_batch(run_id, metrics=entries[start : start + _METRICS_PER_CALL])
        except (MlflowException, OSError) as error:
            self._retry_at = time.monotonic() + RETRY_AFTER_SECONDS
            self._keep(records)
            if not self._warned:
                logger.warning("%s; training goes on, metrics are kept in %s", _failure("metrics", error), self._fallback)
            self._warned = True

    @property
    def _fallback(self) -> Path:
        return self._tracker.folder / FALLBACK

    def _keep(self, records: list[Record]) -> None:
        if not records:
            return
        self._tracker.folder.mkdir(parents=True, exist_ok=True)
        with self._fallback.open("a") as file:
            file.writelines(json.dumps({"run_id": self._tracker.run_id, **record._asdict()}) + "\n" for record in records)


def ui_command(uri: str) -> str:
    """The command that opens MLflow's pages for a store, on this machine only."""
    if uri.startswith("http"):
        return shlex.join([sys.executable, "-m", "webbrowser", uri])
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"])


def git_commit(repository: Path = Path(__file__).parents[1]) -> str:
    """The commit that this code is at, with "-dirty" when the folder differs from it, or "unknown" without git."""
    try:
        top = _git(repository, "rev-parse", "--show-toplevel")
        # An installed copy may lie inside the repository of somebody else's project.
        if Path(top).resolve() != repository.resolve():
            return "unknown"
        changes = _git(repository, "status", "--porcelain")
        return _git(repository, "rev-parse", "HEAD") + ("-dirty" if changes else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _latest_run(client: MlflowClient, experiment_id: str, name: str, parent_run_id: str | None) -> str | None:
    runs = client.search_runs([experiment_id], f"attributes.run_name = '{name}'", order_by=["attributes.start_time DESC"])
    same_parent = (run.info.run_id for run in runs if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == parent_run_id)
    return next(same_parent, None)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    entries = [Param(key, str(value)) for key, value in _flat(params)]
    for start in range(0, len(entries), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_PER_CALL])


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@contextmanager
def _forgiving(what: str) -> Iterator[None]:
    """Turns a failure of the store, remote or a full disk, into a warning."""
    try:
        yield
    except (MlflowException, OSError) as error:
        logger.warning("%s; the work goes on without it", _failure(what, error))


def _failure(what: str, error: Exception) -> str:
    return f"MLflow did not take {what} ({str(error).splitlines()[0][:200]})"

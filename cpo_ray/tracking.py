"""MLflow: an sqlite store in the output folder by default, a server by URI. The only module that imports mlflow.

The driver opens the experiment and its runs; rank 0 logs metrics through a handle that travels to its process.
Whatever happens to the store, training goes on: metrics it did not take are kept in `tracking-fallback.jsonl` in the
run's folder, everything else is a file there already.
"""

from __future__ import annotations

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
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

import mlflow.diffusers
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

logging.getLogger("alembic").setLevel(logging.WARNING)  # one line for each of some sixty table versions
logger = logging.getLogger(__name__)

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
    served = uri.startswith(("http", "databricks"))
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    with _forgiving("the experiment"):
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
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
        with self._client(f"the pictures {name!r}") as (client, run_id):
            image = Image.open(picture) if isinstance(picture, Path) else picture
            client.log_image(run_id, image, key=name, step=step)

    def log_adapter(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Log an exported LoRA adapter as the artifact `adapter`, loadable with `mlflow.diffusers.load_model`.

        `base` is a hub id or a local folder of the base pipeline. With a pinned `revision` the files are logged as
        they are: mlflow would record the newest revision of the hub id as the adapter's base.
        """
        with self._client("the adapter") as (client, run_id), tempfile.TemporaryDirectory() as temporary:
            files = folder
            if revision is None:
                files = Path(temporary, "adapter")
                local = Path(base)
                mlflow.diffusers.save_model(
                    str(folder), str(files), base_model=str(local.absolute()) if local.is_dir() else base
                )
            client.log_artifacts(run_id, str(files), "adapter")

    def log_report(self, path: Path) -> None:
        """Log a finished file, such as the report, under its own name."""
        with self._client(f"the report {path}") as (client, run_id):
            client.log_artifact(run_id, str(path))

    def finish(self, status: Status = "FINISHED") -> None:
        """Close the run in the store."""
        with self._client("the end of the run") as (client, run_id):
            client.set_terminated(run_id, status)

    @contextmanager
    def _client(self, what: str) -> Iterator[tuple[MlflowClient, str]]:
        ...


class Record(NamedTuple):
    """The metrics of one step and when they were logged, in milliseconds since 1970."""

    step: int
    timestamp: int
    metrics: dict[str, float]

"""MLflow: the only room that imports mlflow.

The driver opens the experiment and its runs; rank 0 logs metrics through a handle that travels to its process.
Whatever happens to the store, training goes on: metrics it did not take are kept in `tracking-fallback.jsonl` in the
run's folder, everything else is a file there already.
"""

import logging
import os

# Read by mlflow at each use. Nothing here is ever unpickled, and nobody waits two minutes and seven retries for a
# server that is gone, which are mlflow's own defaults.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from cpo_ray.tracking.git import git_commit
from cpo_ray.tracking.metrics import FALLBACK, MetricLogger
from cpo_ray.tracking.runs import RunDescription, RunTracker, Status, start_run
from cpo_ray.tracking.store import Experiment, open_experiment, resolve_uri, ui_command

logging.getLogger("alembic").setLevel(logging.WARNING)  # one line for each of some sixty table versions
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)  # torch's "+cpu" is no news

__all__ = [
    "FALLBACK",
    "Experiment",
    "MetricLogger",
    "RunDescription",
    "RunTracker",
    "Status",
    "git_commit",
    "open_experiment",
    "resolve_uri",
    "start_run",
    "ui_command",
]

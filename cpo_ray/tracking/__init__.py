"""MLflow: the only package that imports mlflow.

The driver opens the experiment and its runs. Rank 0 logs metrics through a handle that travels to its process. Training never
stops for the store: metrics that it did not take go to `tracking-fallback.jsonl` in the run's folder, which is sent when it is
back, at the end, and at a resume. Everything else is a file anyway.
"""

import logging
import os

# mlflow reads these at each use. Nothing here is ever unpickled, and a lost server costs less than mlflow's defaults of two
# minutes and seven retries.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from cpo_ray.tracking.git import git_commit
from cpo_ray.tracking.metrics import FALLBACK, MetricLogger
from cpo_ray.tracking.runs import RunDescription, RunTracker, Status, start_run
from cpo_ray.tracking.store import Experiment, open_experiment, resolve_uri, ui_command

logging.getLogger("alembic").setLevel(logging.WARNING)  # it prints a line for each of some sixty table versions
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)  # it warns about torch's "+cpu"

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

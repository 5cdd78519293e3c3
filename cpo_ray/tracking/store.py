"""The store of runs: an sqlite file in the output folder by default, or a server."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from cpo_ray.config import ConfigError, Tracking
from cpo_ray.config.section import at_home
from cpo_ray.config.text import redacted
from cpo_ray.core.locks import locked

logger = logging.getLogger(__package__)

_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


@dataclass(frozen=True)
class Experiment:
    """A set of runs in a store. It holds text only, so that it can be sent to any process."""

    uri: str
    id: str | None
    """None if the store could not be reached when the experiment was opened; then nothing tries again."""


def resolve_uri(tracking: Tracking, output: Path) -> str:
    """Return a tracking URI that means the same in every process; by default an sqlite file in `output`.

    Raises ConfigError for a URI that MLflow cannot use as a store.
    """
    if tracking.uri is None:
        return f"sqlite:///{_quoted(output.absolute() / 'mlflow.db')}"
    scheme = urlsplit(tracking.uri).scheme.split("+")[0]
    if scheme not in _SCHEMES and tracking.uri != "databricks":
        raise ConfigError(
            f"tracking.uri is {tracking.uri!r}, which is not an MLflow store; give the address of a server "
            "(http://host:5000) or a database (sqlite:////folder/mlflow.db), or leave it out"
        )
    # Workers run in another folder than the driver, where a relative path would name another database.
    file = tracking.uri.removeprefix("sqlite:///")
    if file == tracking.uri or file.startswith("/"):
        return tracking.uri
    return (
        f"sqlite:///{_quoted(at_home(Path('~')))}{file[1:]}"
        if file.startswith("~/")
        else f"sqlite:///{_quoted(Path.cwd())}/{file}"
    )


def _quoted(path: Path) -> str:
    """Return a path as a URI holds it: a question mark would end it, and a percent sign begins a quoted character."""
    return str(path).replace("%", "%25").replace("?", "%3F")


def open_experiment(uri: str, name: str, artifact_root: Path) -> Experiment:
    """The experiment `name`, created when there is none.

    Any number of processes may call this at once. A local store keeps artifacts below `artifact_root`, whatever
    folder a process runs in; a server decides for itself. Raises ConfigError if the experiment was deleted.
    """
    with forgiving("the experiment"), _sole_opener(uri):
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            served = uri.startswith(("http", "databricks"))
            try:
                return Experiment(uri, client.create_experiment(name, None if served else artifact_root.absolute().as_uri()))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Another process created it between the two calls.
                experiment = client.get_experiment_by_name(name)
                assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            raise ConfigError(f"the MLflow experiment {name!r} was deleted; restore it or choose another tracking.experiment")
        return Experiment(uri, experiment.experiment_id)
    return Experiment(uri, None)


@contextmanager
def _sole_opener(uri: str) -> Iterator[None]:
    """Let one process at a time open an sqlite file. Two that create its tables together fail, in spite of mlflow's own lock."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    file = Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))
    with locked(file.with_name(f"{file.name}.lock")):
        yield


def ui_command(uri: str) -> str:
    """Return the command that opens MLflow's pages for a store, on this machine only."""
    if uri.startswith("http"):
        return shlex.join([sys.executable, "-m", "webbrowser", uri])
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"])


@contextmanager
def forgiving(what: str) -> Iterator[None]:
    """Turn a failure of the store, such as a lost server or a full disk, into a warning."""
    try:
        yield
    except (MlflowException, OSError) as error:
        logger.warning("%s; the work goes on without it", failure(what, error))


def taken(what: str, send: Callable[[], object]) -> bool:
    """Return whether the store has taken what `send` sends it; a failure is a warning, as in `forgiving`."""
    with forgiving(what):
        send()
        return True
    return False


def failure(what: str, error: Exception) -> str:
    """Say in one clause what MLflow did not take and why."""
    return f"MLflow did not take {what} ({redacted(str(error)).splitlines()[0][:200]})"

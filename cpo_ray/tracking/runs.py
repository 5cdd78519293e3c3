"""Runs in the store: the driver begins and ends them and gives them pictures, adapters and reports."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow.diffusers
import numpy as np
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from numpy.typing import NDArray
from PIL import Image

from cpo_ray.tracking.metrics import FALLBACK, MetricLogger, replay
from cpo_ray.tracking.store import Experiment, forgiving, taken

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name
_PARAMS_PER_CALL = 100  # a limit of MLflow's interface

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RunDescription:
    """What the store shows about a run."""

    config_text: str
    """Becomes the artifact config.toml."""
    params: Mapping[str, Any]
    """May be nested (`config.model_dump(mode="json")`); the names are joined with dots."""
    tags: Mapping[str, str]
    """What was trained on: data hash, hierarchy hash, git commit."""
    note: str = ""
    """One line for people: what is trained on what. MLflow shows it as the run's description."""


@dataclass(frozen=True)
class RunTracker:
    """A run in the store. It holds text only, so that it can be sent to any process."""

    experiment: Experiment
    run_id: str | None
    """None if the store could not be reached when the run began; then nothing tries again before a resume."""
    folder: Path
    """The run's own folder, for what the store does not take."""

    @property
    def uri(self) -> str:
        """Address of the store."""
        return self.experiment.uri

    def start(self) -> MetricLogger:
        """Return a live logger for this process; close it or use it in a `with`."""
        return MetricLogger(self.uri, self.run_id, self.folder / FALLBACK)

    def log_pictures(self, name: str, picture: Path | NDArray[np.uint8], step: int) -> None:
        """Show a picture file, or an (H, W, 3) array of 0 to 255, under `name` at a step."""
        if self.run_id is None:
            return
        with forgiving(f"the pictures {name!r}"):
            image = Image.open(picture) if isinstance(picture, Path) else picture
            MlflowClient(self.uri).log_image(self.run_id, image, key=name, step=step)

    def log_adapter(self, folder: Path, base: str, revision: str | None = None) -> bool:
        """Log an exported LoRA adapter as the artifact `adapter`, for `mlflow.diffusers.load_model`. Return whether it is there.

        `base` is the hub id or the folder of the base pipeline. With a pinned `revision` only the files are logged:
        mlflow would write down the newest revision of the hub id as the one that the adapter belongs to. A whole denoiser,
        of many gigabytes, stays where it is.
        """
        run_id = self.run_id
        if run_id is None or not (folder / LORA_WEIGHTS).exists():
            return run_id is not None

        def send() -> None:
            with tempfile.TemporaryDirectory() as temporary:
                model = folder
                if revision is None:
                    model = Path(temporary) / "adapter"
                    place = str(Path(base).absolute()) if Path(base).is_dir() else base
                    mlflow.diffusers.save_model(str(folder), str(model), base_model=place)
                MlflowClient(self.uri).log_artifacts(run_id, str(model), "adapter")

        return taken("the adapter", send)

    def log_card(self, folder: Path, revision: str | None = None) -> None:
        """Log the model card of an adapter again, with the arguments of `log_adapter`."""
        if self.run_id is None or not (folder / LORA_WEIGHTS).exists():
            return
        with forgiving("the model card"):
            place = "adapter" if revision else "adapter/adapter_weights"  # mlflow's name in a model
            MlflowClient(self.uri).log_artifact(self.run_id, str(folder / "README.md"), place)

    def log_report(self, path: Path) -> None:
        """Log a finished file, such as the report, under its own name."""
        if self.run_id is None:
            return
        with forgiving(f"the report {path}"):
            MlflowClient(self.uri).log_artifact(self.run_id, str(path))

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        if self.run_id is None:
            return
        with forgiving(f"the tag {name!r}"):
            MlflowClient(self.uri).set_tag(self.run_id, name, value)

    def register(self, model: str, alias: str) -> None:
        """Register the run's adapter, if it has logged one, as a version of `model`, and move the alias to it."""
        if self.run_id is None:
            return
        with forgiving(f"the model {model!r}"):
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
        """Continue a run that was closed."""
        if self.run_id is None:
            return
        with forgiving("the run again"):
            MlflowClient(self.uri).update_run(self.run_id, status="RUNNING")

    def finish(self, status: Status = "FINISHED") -> bool:
        """Close the run in the store, which gets the metrics that it missed. Return whether it has taken them and the end."""
        run_id = self.run_id
        if run_id is None:
            return False

        def send() -> None:
            replay(self.uri, run_id, self.folder / FALLBACK)
            MlflowClient(self.uri).set_terminated(run_id, status)

        return taken("the end of the run", send)

    def abandon(self, status: Status) -> None:
        """Close the run, and those inside it, with a status if the store has them as running."""
        if self.run_id is None:
            return
        with forgiving("the end of the run"):
            client = MlflowClient(self.uri)
            inside = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'"
            for run in (*client.search_runs([str(self.experiment.id)], inside), client.get_run(self.run_id)):
                if run.info.status == "RUNNING":
                    client.set_terminated(run.info.run_id, status)


def start_run(
    experiment: Experiment,
    name: str,
    folder: Path,
    description: RunDescription,
    parent_run_id: str | None = None,
    resume: bool = False,
) -> RunTracker:
    """Begin the run `name`, inside the run `parent_run_id` if given; with `resume` continue the latest run of that name.

    If the store does not answer, the tracker writes to `folder` only.
    """
    run_id: str | None = None
    if experiment.id is not None:
        with forgiving(f"the run {name!r}"):
            client = MlflowClient(experiment.uri)
            if resume:
                run_id = _latest_run(client, experiment.id, name, parent_run_id)
            if run_id is None:
                own = {MLFLOW_PARENT_RUN_ID: parent_run_id, MLFLOW_RUN_NOTE: description.note}
                tags = {**description.tags, **{key: value for key, value in own.items() if value}}
                run_id = client.create_run(experiment.id, tags=tags, run_name=name).info.run_id
                _log_params(client, run_id, description.params)
            else:  # parameters of a run cannot change in MLflow
                client.update_run(run_id, status="RUNNING")
            client.log_text(run_id, description.config_text, "config.toml")
            replay(experiment.uri, run_id, folder / FALLBACK)
    return RunTracker(experiment, run_id, folder)


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

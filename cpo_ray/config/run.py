"""The run's name and folders, the machine it is planned for, and tracking."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, field_validator

from cpo_ray.config.section import Free, Section
from cpo_ray.config.text import redacted


class RunSettings(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder and of its MLflow run. --resume with the same name continues the run."""
    output: Path
    """Folder of all runs. A run writes to output/name and to the target store, nowhere else."""
    seed: int = Field(default=0, ge=0)
    """Everything random is a function of this number, the sample's id and the draw."""


class Machine(Section):
    """The machine that a run is planned for. `--check` looks at this machine or cluster for what is not stated here."""

    gpu: Free[str | None] = None
    """Kind of GPU, such as "H100", for a plan for another machine."""
    gpu_gigabytes: Free[PositiveFloat | None] = None
    """Usable memory of each GPU, in 10^9 bytes."""
    teraflop_per_second: Free[PositiveFloat | None] = None
    """Sustained rate of one GPU (or one CPU, without GPUs) on these models, for expected times. By default 40 % of a known GPU's
    peak."""


class Tracking(Section):
    uri: str | None = None
    """MLflow tracking URI, without a password. By default an sqlite store in the output folder."""
    experiment: str = "cpo"

    @field_validator("uri")
    @classmethod
    def _without_a_password(cls, uri: str | None) -> str | None:
        """The URI is written to config.toml, to MLflow and to the terminal."""
        if uri is not None and redacted(uri) != uri:
            raise ValueError(
                "it holds a password or a token, and the address is written down with the run; leave it out and export "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN (PGPASSWORD for PostgreSQL)"
            )
        return uri

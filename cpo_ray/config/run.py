"""What a run is called, where it runs and who keeps track of it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat

from cpo_ray.config.section import Free, Section


class RunSettings(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's folder and its MLflow run; the same name with --resume goes on where it stopped."""
    output: Path
    """Folder of all runs; the run writes to output/name and nowhere else but the target store."""
    seed: int = Field(default=0, ge=0)
    """Everything random is a function of this number, the sample's id and the draw."""


class Machine(Section):
    """What the run is planned for; `--check` looks at the machine or cluster that it runs on for what is not stated here."""

    gpu: Free[str | None] = None
    """Kind of GPU, such as "H100", to plan for one that is elsewhere."""
    gpu_gigabytes: Free[PositiveFloat | None] = None
    """What a program can use of each GPU, in 10^9 bytes."""
    teraflop_per_second: Free[PositiveFloat | None] = None
    """What one GPU, or one CPU where there is none, sustains on these models; expected times follow from it. Without it 40 % of
    the peak of a known GPU."""


class Tracking(Section):
    uri: str | None = None
    """MLflow tracking URI; without it an sqlite store in the output folder."""
    experiment: str = "cpo"

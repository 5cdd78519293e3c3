"""Records of trials as files in their folders. A killed sweep resumes from them, and results are read from them.

trials/<id>/trial.json                 the point, its state, its MLflow run
trials/<id>/rungs/step-00000040.json   what was measured after 40 steps
trials/<id>/rungs/step-00000040/       pictures of that rung, for the report
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cpo_ray.config.sweep.searched import Point
from cpo_ray.core.files import read_json, write_json
from cpo_ray.evaluation.measure import Measured
from cpo_ray.sweep.space import trial_id

#: A killed trial stays "running". A "stopped" trial fell behind, and a "diverged" one was ended by its own numbers:
#: both are results and do not run again. A "failed" trial crashed too often, and runs again with --resume.
Status = Literal["running", "finished", "stopped", "diverged", "failed"]
SETTLED: tuple[Status, ...] = ("finished", "stopped", "diverged")
TRIALS = "trials"
_RECORD = "trial.json"
_RUNGS = "rungs"


@dataclass(frozen=True)
class Rung:
    """One measurement of a trial after `step` steps. Without a domain that measures, `measured` is None.

    held_out: the objective's own metrics on targets of validation pictures.
    """

    step: int
    held_out: dict[str, float]
    measured: Measured | None

    def metrics(self) -> dict[str, float]:
        """The measurements by name, as MLflow and the search see them."""
        found = {f"held_out/{name}": value for name, value in self.held_out.items()}
        return found if self.measured is None else found | self.measured.means


@dataclass(frozen=True)
class Trial:
    """A point and the state of its training. `sentence` says what ended it, unless it reached its end."""

    point: Point
    status: Status = "running"
    sentence: str = ""
    mlflow_run_id: str | None = None
    seconds: float = 0.0

    @property
    def id(self) -> str:
        return trial_id(self.point)

    def folder(self, sweep: Path) -> Path:
        return sweep / TRIALS / self.id

    def remove_checkpoints(self, sweep: Path) -> None:
        """Delete its checkpoints, once nothing will continue from them."""
        shutil.rmtree(self.folder(sweep) / f"{sweep.name}-{self.id}", ignore_errors=True)  # where its training keeps them

    def ended(self, status: Status, sentence: str = "") -> Trial:
        return replace(self, status=status, sentence=sentence)

    def save(self, sweep: Path) -> None:
        """Write it below the sweep's folder."""
        write_json(self.folder(sweep) / _RECORD, asdict(self))


def read_trial(folder: Path) -> Trial | None:
    """Read what `save` left in a trial's folder; None if there is nothing."""
    file = folder / _RECORD
    return Trial(**read_json(file)) if file.exists() else None


def read_trials(sweep: Path) -> Iterator[Trial]:
    """Return all trials of a sweep that have begun."""
    for folder in sorted((sweep / TRIALS).glob("*")):
        trial = read_trial(folder)
        if trial is not None:
            yield trial


def rung_file(trial: Path, step: int) -> Path:
    """Return the file of a trial's rung. Its pictures lie in a folder of the same stem."""
    return trial / _RUNGS / f"step-{step:08d}.json"


def save_rung(trial: Path, rung: Rung) -> None:
    """Write a rung into its trial's folder."""
    write_json(rung_file(trial, rung.step), asdict(rung))


def read_rungs(trial: Path) -> list[Rung]:
    """Return the rungs in a trial's folder, in order."""
    return [_rung(read_json(file)) for file in sorted((trial / _RUNGS).glob("step-*.json"))]


def _rung(values: dict[str, Any]) -> Rung:
    measured = values["measured"]
    return Rung(values["step"], values["held_out"], None if measured is None else Measured.from_json(measured))

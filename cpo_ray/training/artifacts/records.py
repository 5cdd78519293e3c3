"""What a training leaves for people: a line of metrics per step, and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cpo_ray.core.files import Log, read_log, write_log
from cpo_ray.objectives import objective_of
from cpo_ray.training.artifacts.ledger import drop_after

if TYPE_CHECKING:
    from cpo_ray.training.worker import TrainSpec

METRICS = "metrics.jsonl"
#: What a training was begun with, and its end.
SETTINGS, RESULT = "training.json", "result.json"


class StepLogger(Protocol):
    """Takes the metrics of each step, on rank 0."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class StepTracking(Protocol):
    """Starts the logger in the process that logs. Picklable."""

    def start(self) -> StepLogger: ...


class _MetricsFile:
    """metrics.jsonl, one line per step; each line is flushed, so that people can watch."""

    def __init__(self, path: Path, first: int) -> None:
        # The curve is for people: a line that a crash has damaged is no reason not to go on with the training.
        write_log(path, [entry for entry in read_log(path, skip_damaged=True) if entry.get("step", first) < first])
        self._log = Log(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._log.append([{"step": step, **metrics}])

    def close(self) -> None:
        self._log.close()


def open_loggers(spec: TrainSpec, first: int, stack: ExitStack) -> list[StepLogger]:
    """Return rank 0's loggers, without what was logged after the checkpoint, since it is trained again."""
    drop_after(spec.output, first)
    loggers: list[StepLogger] = [_MetricsFile(spec.output / METRICS, first)]
    if spec.tracking is not None:
        loggers.append(spec.tracking.start())
    for logger in loggers:
        stack.callback(logger.close)
    return loggers


#: Metrics of a step that say nothing about the weights, or that the card has already.
_NOT_ON_THE_CARD = ("learning_rate", "samples_per_second", "seconds_waited_for_targets")


def model_card(spec: TrainSpec, metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the lines of the model card."""
    optimization = spec.optimization
    told = spec.objective.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    average = f"moving average of the trained ones, decay {optimization.ema_decay:g}"
    return {
        "objective": objective_of(spec.objective).name,
        **{name: str(value) for name, value in told.items()},
        "steps": str(spec.plan.steps),
        "samples per step": str(spec.plan.global_batch),
        "training pictures": str(len(spec.plan.sample_ids)),
        "learning rate": str(optimization.learning_rate),
        **({"optimizer": optimization.optimizer} if optimization.optimizer != "adamw" else {}),
        **({"weights": average} if optimization.ema_decay else {}),
        "seed": str(spec.seed),
        "targets": spec.targets.fingerprint,
        **spec.card,
        **{f"last step: {name}": f"{value:.4g}" for name, value in metrics.items() if name not in _NOT_ON_THE_CARD},
    }

"""Send metrics to the store without making any step wait."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from cpo_ray.core.files import Log, read_log
from cpo_ray.tracking.store import failure, logger

FALLBACK = "tracking-fallback.jsonl"
SEND_EVERY_SECONDS = 2.0
RETRY_AFTER_SECONDS = 60.0
CLOSE_SECONDS = 60.0
_METRICS_PER_CALL = 1000  # a limit of MLflow's interface


class _Record(NamedTuple):
    """The metrics of one step, and their time in milliseconds since 1970."""

    step: int
    timestamp: int
    metrics: dict[str, float]


class MetricLogger:
    """Metrics of one process, sent in batches by a thread of its own."""

    def __init__(self, uri: str, run_id: str | None, fallback: Path) -> None:
        """Without a `run_id`, and while the store does not answer, metrics go to the file `fallback`."""
        self._uri, self._run_id, self._fallback = uri, run_id, fallback
        self._records: queue.SimpleQueue[_Record] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._warned = self._missed = False
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._send_until_closed, name="tracking", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step. Returns at once and never raises because of the store."""
        values = {key: float(value) for key, value in metrics.items()}
        self._records.put(_Record(step, time.time_ns() // 1_000_000, values))

    def close(self) -> None:
        """Send what is left, and what the store missed before. One that does not answer delays this by a minute at most."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_until_closed(self) -> None:
        while not self._closing.wait(SEND_EVERY_SECONDS):
            self._send(self._waiting())
        self._retry_at = 0.0
        self._send(self._waiting())

    def _waiting(self) -> list[_Record]:
        return [self._records.get() for _ in range(self._records.qsize())]

    def _send(self, records: list[_Record]) -> None:
        if self._run_id is None or time.monotonic() < self._retry_at:
            return self._keep(records)
        try:
            _log(self._uri, self._run_id, records)
            if self._missed:
                replay(self._uri, self._run_id, self._fallback)
                self._missed = False
        except (MlflowException, OSError) as error:
            self._retry_at = time.monotonic() + RETRY_AFTER_SECONDS
            self._keep(records)
            if not self._warned:
                logger.warning("%s; training goes on, metrics are kept in %s", failure("metrics", error), self._fallback)
            self._warned = True

    def _keep(self, records: list[_Record]) -> None:
        if records:
            self._missed = True
            with Log(self._fallback) as log:
                log.append({"run_id": self._run_id, **record._asdict()} for record in records)


def replay(uri: str, run_id: str, fallback: Path) -> None:
    """Send a run what its store did not take, and remove the file in which it was kept; a store counts equal metrics once.

    Raises MlflowException or OSError if the store does not answer. Then all of it is still there.
    """
    sending = fallback.with_name(f"{fallback.name}.sending")  # meanwhile another logger of the run may begin a new file
    while sending.exists() or fallback.exists():
        if not sending.exists():
            os.replace(fallback, sending)
        kept = read_log(sending, skip_damaged=True)
        _log(uri, run_id, [_Record(entry["step"], entry["timestamp"], entry["metrics"]) for entry in kept])
        sending.unlink(missing_ok=True)


def _log(uri: str, run_id: str, records: Iterable[_Record]) -> None:
    entries = [Metric(key, value, at, step) for step, at, metrics in records for key, value in metrics.items()]
    client = MlflowClient(uri)
    for start in range(0, len(entries), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=entries[start : start + _METRICS_PER_CALL])

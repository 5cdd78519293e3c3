"""What a trial measures when its training is slow, ended or failed, and two trials of one point."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from support.tiny_training import make_spec

from cpo_ray.config import Model
from cpo_ray.sweep.trial import alone, in_background, weights_at
from cpo_ray.training.driver import TrainResult
from cpo_ray.training.health import TrainingHealthError
from cpo_ray.training.worker import HELD_OUT, TrainSpec, snapshot_folder


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    return make_spec(tmp_path, Model(family="sdxl", base="none"), optimization={})


def leave_snapshot(spec: TrainSpec, step: int) -> Path:
    folder = snapshot_folder(spec, step)
    folder.mkdir(parents=True)
    (folder / HELD_OUT).write_text(json.dumps({"win": -0.5}))
    return folder


def ended(spec: TrainSpec) -> Future[TrainResult]:
    training: Future[TrainResult] = Future()
    training.set_result(TrainResult(spec.output / "adapter", 4, 4, {}, None))
    return training


def test_a_snapshot_is_waited_for(spec: TrainSpec) -> None:
    running: Future[TrainResult] = Future()
    threading.Timer(0.7, leave_snapshot, (spec, 2)).start()
    assert weights_at(spec, 2, running) == (snapshot_folder(spec, 2), {"win": -0.5})


def test_what_is_left_of_a_training_that_ended(spec: TrainSpec) -> None:
    leave_snapshot(spec, 2)
    assert weights_at(spec, 2, ended(spec)) == (snapshot_folder(spec, 2), {"win": -0.5})
    assert weights_at(spec, 4, ended(spec)) == (spec.output / "adapter", {})
    assert weights_at(spec, 3, ended(spec)) is None


def test_a_training_that_failed_ends_the_wait(spec: TrainSpec) -> None:
    def fail() -> TrainResult:
        raise TrainingHealthError("training stopped: the loss of step 1 is nan")

    with pytest.raises(TrainingHealthError, match="the loss of step 1 is nan"):
        weights_at(spec, 2, in_background(fail))


def test_two_trials_of_one_point_follow_each_other(tmp_path: Path) -> None:
    inside, leave, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with alone(tmp_path / "trial"):
            inside.set()
            leave.wait(30)
            order.append("first")

    def second() -> None:
        with alone(tmp_path / "trial"):
            order.append("second")

    threads = [threading.Thread(target=work) for work in (first, second)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    time.sleep(0.3)
    leave.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "second"]

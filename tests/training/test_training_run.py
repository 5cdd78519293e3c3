"""The driver's side of a training without Ray: what a resume may change, and what is said while it runs."""

from __future__ import annotations

import json
import pickle
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from support.tiny_training import make_spec

from cpo_ray.config import Model
from cpo_ray.core.files import read_log, write_json
from cpo_ray.training import driver
from cpo_ray.training.artifacts.records import METRICS, model_card, open_loggers
from cpo_ray.training.worker import TrainSpec


def spec_in(folder: Path, **optimization: Any) -> TrainSpec:
    return make_spec(folder, Model(family="sdxl", base="base"), optimization=optimization, resume=True)


def test_a_resume_may_have_other_workers_and_no_other_training(tmp_path: Path) -> None:
    started = spec_in(tmp_path)
    started.output.mkdir()
    record = started.output / "training.json"
    settings = driver._settings(started)
    write_json(record, {key: value for key, value in settings.items() if key != "optimization.ema_decay"})
    driver._check_output(started)  # it was started before there was this setting
    write_json(record, settings)
    driver._check_output(spec_in(tmp_path, workers=4, micro_batch=1, zero_stage=2, offload_optimizer=True, gpus_per_worker=1))
    with pytest.raises(
        driver.TrainingError, match=r"started with optimization\.ema_decay = 0\.0, and is now .* with 0\.9; .* \(workers"
    ):
        driver._check_output(spec_in(tmp_path, ema_decay=0.9))
    with pytest.raises(driver.TrainingError, match=r"started with plan = "):
        driver._check_output(replace(started, plan=replace(started.plan, seed=7)))


def test_workers_find_a_base_in_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def base_of(spec: TrainSpec) -> str:
        sent: TrainSpec = pickle.loads(driver._trainer(spec).train_loop_config["spec"])
        return sent.model.base

    assert base_of(spec_in(tmp_path)) == "base"  # it may be a hub id
    (tmp_path / "base").mkdir()
    spec = spec_in(tmp_path)
    assert base_of(spec) == str(tmp_path / "base")
    assert driver._settings(spec)["model.base"] == "base"  # a resume from elsewhere has the same settings


def test_a_winner_error_that_grows_is_told_once_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_LOOK_EVERY_SECONDS", 0.01)
    spec, said, counted = spec_in(tmp_path), list[str](), list[tuple[int, int]]()
    spec.output.mkdir()

    def follow(done: int, total: int, at: float | None = None) -> None:
        counted.append((done, total))

    with (
        driver._followed(spec, follow, said.append) as told,
        (spec.output / METRICS).open("a", buffering=1) as file,
    ):
        for step in range(100):
            file.write(json.dumps({"step": step, "loss": 0.5, "win": 0.01 * step}) + "\n")
            time.sleep(0.001)
        file.write('{"step": 100, "lo')  # half a line
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    assert len(said) == 1 and said == told and "omega_win" in said[0]
    assert driver._winner_warning(spec) == said[0]
    assert driver._winner_warning(replace(spec, output=tmp_path / "nothing")) is None


def test_a_training_without_progress_says_once_what_it_may_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(driver, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
    spec, said = spec_in(tmp_path), list[str]()
    with driver._followed(spec, None, said.append):
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
    shards = len(spec.plan.shards(spec.shard_size))
    assert said == [driver._quiet(spec)]
    assert f"{shards} of {shards} target shards are missing, and 0.5 of 2 CPUs are free, where 1 workers take 1 CPUs" in said[0]


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ("", []),
        ('{"step": 0, "loss": 0.5}\n{"step": 1, "lo', [0]),
        ('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo', [0, 1, 2]),
        ('{"step": 0}\n\0\0\0\n{"step": 2}\n{"step": 3}\n', [0, 2]),
        ('{"step": 0}\n{"step": 1, "l{"step": 1}\n{"step": 2}\n', [0, 2]),
    ],
    ids=["empty", "a torn end", "steps after the checkpoint and a torn end", "zeros within", "a torn line within"],
)
def test_a_training_goes_on_after_metrics_that_a_crash_has_cut(left: str, kept: list[int], tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    spec.output.mkdir()
    (spec.output / METRICS).write_text(left)
    with ExitStack() as stack:
        (logger,) = open_loggers(spec, 3, stack)
        logger.log(3, {"loss": 0.25})
        assert read_log(spec.output / METRICS)[-1] == {"step": 3, "loss": 0.25}  # people can watch
    assert [entry["step"] for entry in read_log(spec.output / METRICS)] == [*kept, 3]
    assert driver._winner_warning(spec) is None


def test_the_model_card_names_what_is_not_usual(tmp_path: Path) -> None:
    plain, other = (
        model_card(spec_in(tmp_path, **changes), {}) for changes in ({}, {"optimizer": "adafactor", "ema_decay": 0.99})
    )
    assert {key: value for key, value in other.items() if key not in plain} == {
        "optimizer": "adafactor",
        "weights": "moving average of the trained ones, decay 0.99",
    }

"""Sweeps on a real Ray of two CPUs: that the expert is never called twice, and that nothing a trial does harms the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from mlflow.tracking import MlflowClient
from support.processes import processes

import cpo_ray.sweep.search
from cpo_ray.config import Config, ConfigError, load
from cpo_ray.models import family
from cpo_ray.session import release_reserved
from cpo_ray.sweep.records import Trial, read_rungs, read_trials
from cpo_ray.sweep.search import findings, search
from cpo_ray.training.artifacts.ledger import read_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TOY = ROOT / "jobs" / "configs" / "toy_sweep.toml"
SHORT = (
    "domain.pictures=90",
    "targets.shard_size=8",
    "targets.draws=2",
    "targets.min_actors=1",
    "targets.max_actors=1",
    "preference.optimization.steps=4",
    "preference.optimization.warmup_steps=0",
    "preference.optimization.global_batch=8",
    "evaluation.pictures=4",
    "evaluation.inference_steps=2",
    "evaluation.batch=6",
    "evaluation.actors=1",
    "sweep.pictures=6",
    "sweep.held_out=5",
    "sweep.rungs=2",
    "sweep.max_concurrent=1",
)
#: One training that goes well and one that explodes, in this order.
RATES = "sweep.space={ learning_rate = [1e-4, 1e30] }"


@dataclass(frozen=True)
class Killed:
    """A sweep whose driver was killed outright once the first of its trials had finished."""

    done: Trial
    folder: Path
    shards: dict[Path, int]
    trained: int
    """The time at which the adapter of the finished trial was written."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all sweeps of this module live: they share pictures, expert and targets."""
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def expert(folder: Path) -> Path:
    """An adapter of small random weights; test_pipeline trains one."""
    described = load(TOY)
    found = family(described.model)
    denoiser = found.load_denoiser(described.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in found.add_lora(denoiser, described.expert.lora, seed=1):
            torch.nn.init.normal_(denoiser.get_parameter(name), std=0.01)
    found.save_adapter(denoiser, None, folder / "expert")
    return folder / "expert"


def settings(folder: Path, name: str, *overrides: str) -> list[str]:
    places = [f"run.output={folder}", f"data.folder={folder / 'data'}", f"targets.folder={folder / 'targets'}"]
    return [*SHORT, *places, f"expert.adapter={folder / 'expert'}", f"run.name={name}", *overrides]


def config(folder: Path, name: str, *overrides: str) -> Config:
    return load(TOY, settings(folder, name, *overrides))


def trials(folder: Path, name: str) -> list[Trial]:
    return list(read_trials(folder / name))


def written(folder: Path) -> dict[Path, int]:
    """When each target shard was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "targets").rglob("*.safetensors")}


def adapter_of(folder: Path, trial: Trial) -> Path:
    return trial.folder(folder / "first") / "adapter" / "pytorch_lora_weights.safetensors"


def until(condition: Callable[[], object]) -> None:
    """Look again and again, for ten minutes at most."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def killed(folder: Path, expert: Path, ray_session: None) -> Killed:
    """Started by its command line, in a process of its own. The process of its first trial is killed, too, as a lack of memory
    would, once its training has written weights.
    """

    def running(pattern: str) -> list[Path]:
        assert driver.poll() is None, (folder / "log").read_text()[-3000:]
        return list((folder / "first" / "trials").glob(pattern))

    def finished() -> list[Trial]:
        return [trial for trial in trials(folder, "first") if running("*") and trial.status == "finished"]

    with (folder / "log").open("w") as log:
        command = [sys.executable, str(ROOT / "tune" / "search_cpo.py"), *settings(folder, "first", RATES)]
        environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            until(lambda: running("*/snapshots/step-*"))
            processes("ImplicitFunc")[0].kill()
            until(finished)
        finally:
            driver.kill()
            driver.wait(30)
    (done,) = [trial for trial in trials(folder, "first") if trial.status == "finished"]
    return Killed(done, folder, written(folder), adapter_of(folder, done).stat().st_mtime_ns)


@pytest.fixture(scope="module")
def first(killed: Killed) -> Path:
    """The same sweep, resumed."""
    described = config(killed.folder, "first", RATES)
    with pytest.raises(ConfigError, match="already holds a run; pass --resume"):
        search(described)
    report = search(described, resume=True)
    assert (report.expert_forwards, report.shards_written) == (0, 0)
    return killed.folder / "first"


def test_a_killed_sweep_goes_on_with_what_was_left_and_calls_no_expert(killed: Killed, first: Path) -> None:
    assert killed.shards and written(first.parent) == killed.shards, "the expert was called again"
    assert adapter_of(first.parent, killed.done).stat().st_mtime_ns == killed.trained, "a finished trial was run again"


def test_a_trial_that_dies_is_started_again_one_that_explodes_ends_and_the_others_go_on(killed: Killed, first: Path) -> None:
    found = {trial.point["learning_rate"]: trial for trial in trials(first.parent, "first")}
    exploded = found.pop(1e30)
    assert exploded.status == "diverged" and exploded.sentence.startswith("training stopped: the ")
    assert "no checkpoint was written yet; try a smaller" in exploded.sentence
    kept = {path.parents[2] for path in first.rglob("engine.safetensors")}
    assert kept <= {exploded.folder(first)}, "only what diverged keeps its checkpoints"
    assert found.keys() == {1e-4} and killed.done.point == found[1e-4].point
    assert len(read_ledger(killed.done.folder(first))) == 4 * 8
    lines = {line["learning_rate"]: line for line in pq.read_table(first / "results.parquet").to_pylist()}
    assert lines[1e30]["status"] == "diverged" and not lines[1e30]["best"] and lines[1e-4]["best"]


def test_a_sweep_leaves_its_results_and_a_configuration_of_the_best(killed: Killed, first: Path, expert: Path) -> None:
    lines = {line["label"]: line for line in pq.read_table(first / "results.parquet").to_pylist()}
    assert set(lines) == {"base", "rate 0.0001", "rate 1e+30"}
    assert lines["rate 0.0001"]["step"] == 4 and lines["rate 0.0001"]["held_out_distance_to_reference"] > 0
    rungs = read_rungs(killed.done.folder(first))
    assert [rung.step for rung in rungs] == [2, 4]
    assert all(rung.measured is not None and len(rung.measured.values["negatives"]) == 6 for rung in rungs)
    assert not list(killed.done.folder(first).glob("snapshots/step-*")), "weights of a rung are removed once it is measured"
    page = (first / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 6  # base and trial, six prompts
    best = load(first / "best.toml")
    assert best.preference.optimization.learning_rate == 1e-4
    assert best.expert.adapter == expert


def test_trials_are_nested_runs_and_the_best_is_tagged_and_registered(first: Path, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{first.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cpo")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    trial = runs["rate 0.0001"]
    assert trial.data.tags["mlflow.parentRunId"] == runs["first"].info.run_id
    assert trial.info.status == "FINISHED"
    # Each rung, and once more at the end, with the ends of the interval. What was killed may have told a rung twice, and takes
    # along the losses that it had not sent yet.
    steps = [entry.step for entry in client.get_metric_history(trial.info.run_id, "negatives")]
    assert set(steps) == {2, 4} and steps.count(4) == 2
    assert [entry.step for entry in client.get_metric_history(trial.info.run_id, "negatives.low")] == [4]
    assert {2, 3} <= {entry.step for entry in client.get_metric_history(trial.info.run_id, "loss")} <= {0, 1, 2, 3}
    card = client.download_artifacts(trial.info.run_id, "adapter/adapter_weights/README.md", str(tmp_path))
    assert "\n| rate 0.0001 | " in Path(card).read_text()
    assert [name for name, run in runs.items() if run.data.tags.get("best") == "true"] == ["rate 0.0001"]
    assert client.get_model_version_by_alias("first-adapter", "best").run_id == trial.info.run_id


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expert was tested for the first sweep and is not tested again."""
    monkeypatch.setattr(cpo_ray.sweep.search, "check_obedience", lambda run: None)


def test_tpe_with_a_scheduler_searches_other_settings_on_the_same_targets(killed: Killed, first: Path, trusted: None) -> None:
    """Two trials at once, one of them with an objective from outside and a setting of its own."""
    folder, pull = first.parent, "support.outside.objective:PULL"
    space = f"{{ omega = {{ low = 1.0, high = 3.0 }}, objective = ['cpo', '{pull}'], preference.lora.rank = [2, 4], "
    space += "preference.objective.strength = { low = 1.0, high = 2.0 } }"
    more = ("sweep.search=multi_objective", "sweep.scheduler=asha", "sweep.trials=2", "sweep.max_concurrent=2")
    report = search(config(folder, "searched", f"sweep.space={space}", *more))
    assert report.expert_forwards == 0 and written(folder) == killed.shards, "other settings have called the expert"
    found = trials(folder, "searched")
    assert len(found) == 2 and {trial.status for trial in found} <= {"finished", "stopped"}
    assert all(1 <= float(trial.point["omega"]) <= 3 for trial in found)
    objectives = {trial.point["objective"] for trial in found}
    assert objectives == {"cpo", pull}
    assert all(("preference.objective.strength" in trial.point) == (trial.point["objective"] == pull) for trial in found)
    # What trials differ in reaches the training.
    moved = {read_rungs(trial.folder(folder / "searched"))[0].held_out["distance_to_reference"] for trial in found}
    assert len(moved) == 2 and min(moved) > 0
    assert not list((folder / "searched" / "trials").rglob("engine.safetensors"))
    assert json.loads((found[0].folder(folder / "searched") / "trial.json").read_text())["mlflow_run_id"]
    lines = pq.read_table(folder / "searched" / "results.parquet").to_pylist()
    own = [line for line in lines if line["objective"] == pull]
    assert own and all(1 <= line["preference.objective.strength"] <= 2 and line["beta"] is None for line in own)
    assert {line["preference.lora.rank"] for line in lines} <= {2, 4, None}  # the base has none
    assert "Over strength" in (folder / "searched" / "report.html").read_text()
    # ω is one number for two settings.
    (chosen,) = [line for line in lines if line["best"]]
    told = load(folder / "searched" / "best.toml").preference.objective.model_dump()
    assert {told[name] for name in ("omega_win", "omega_lose") if name in told} == {chosen["omega_win"]}


def test_when_the_time_is_over_nothing_goes_on_and_the_trials_stay_open(first: Path, folder: Path, trusted: None) -> None:
    long = ("preference.optimization.steps=5000", "sweep.minutes=0.3", "sweep.space={ omega = [1.0, 2.0] }")
    search(config(folder, "short", *long))
    assert {trial.status for trial in trials(folder, "short")} <= {"running"}
    assert not (folder / "short" / "best.toml").exists()
    until(lambda: not processes("RayTrainWorker"))  # else a stopped trial's training goes on
    until(lambda: ray.available_resources().get("CPU") == 2)  # else it has left something reserved


def test_what_a_killed_training_has_reserved_is_given_back(ray_session: None) -> None:
    class Reserving:  # within the test, so that Ray sends the class itself: its workers cannot import tests
        """Reserves a CPU and dies, as a training that is stopped before its workers run."""

        def reserve(self) -> str:
            return str(ray.util.placement_group([{"CPU": 1}]).wait(30))

    actor = ray.remote(num_cpus=0)(Reserving).remote()
    assert ray.get(actor.reserve.remote()) == "True"
    ray.kill(actor)
    until(lambda: ray.available_resources().get("CPU") == 1)
    assert release_reserved() == 1
    until(lambda: ray.available_resources().get("CPU") == 2)
    assert release_reserved() == 0


def test_a_sweep_that_does_not_fit_is_refused_before_anything_starts(folder: Path, ray_session: None) -> None:
    described = config(folder, "large", "preference.optimization.workers=3")
    with pytest.raises(ConfigError, match=r"there are 2 CPUs, so 0\.7 CPUs are missing; lower preference\.optimization\.workers"):
        search(described)
    assert not (folder / "large").exists()
    assert "missing" in [finding.verdict for finding in findings(described)]
    small = config(folder, "small", "sweep.max_concurrent=2")
    assert findings(small)[-1].sentence == "sweep: 5 trials by search 'grid', 2 at once"


def test_pictures_that_nothing_can_measure_cannot_guide_a_search(folder: Path) -> None:
    described = config(
        folder, "blind", "domain.use=none", "domain.pictures=0", "model.base=some/model", "sweep.search=tpe", "sweep.trials=3"
    )
    with pytest.raises(ConfigError, match="goes by scores, and nothing scores pictures here"):
        search(described)

"""Sweeps on a real Ray of two CPUs: that the expert is never called twice, and that nothing a trial does harms the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from mlflow.tracking import MlflowClient

from cpo_ray.config import Config, ConfigError, load
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
    "expert.optimization.steps=3",
    "expert.optimization.warmup_steps=0",
    "expert.optimization.global_batch=8",
    "expert.optimization.workers=1",
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
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all sweeps of this module live: they share pictures, expert and targets."""
    return tmp_path_factory.mktemp("sweeps")


def settings(folder: Path, name: str, *overrides: str) -> list[str]:
    places = [f"run.output={folder}", f"data.folder={folder / 'data'}", f"targets.folder={folder / 'targets'}"]
    expert = folder / "first" / "expert" / "adapter"
    shared = [f"expert.adapter={expert}"] if name != "first" else []
    return [*SHORT, *places, *shared, f"run.name={name}", *overrides]


def config(folder: Path, name: str, *overrides: str) -> Config:
    return load(TOY, settings(folder, name, *overrides))


def trials(folder: Path, name: str) -> list[Trial]:
    return list(read_trials(folder / name))


def processes(name: str) -> list[psutil.Process]:
    """Ray's processes of that name; one that ends while it is looked at is none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def first(folder: Path, ray_session: None) -> Path:
    """A grid of two, with its expert: what the other tests start from."""
    report = search(config(folder, "first", "sweep.space={ omega = [1.0, 3.0] }"))
    assert report.expert_forwards > 0
    return folder / "first"


def test_a_sweep_leaves_its_results_and_a_configuration_of_the_best(first: Path) -> None:
    assert [trial.status for trial in trials(first.parent, "first")] == ["finished"] * 2
    lines = {line["label"]: line for line in pq.read_table(first / "results.parquet").to_pylist()}
    assert set(lines) == {"base", "ω 1", "ω 3"}
    assert all(lines[name]["step"] == 4 and lines[name]["held_out_distance_to_reference"] > 0 for name in ("ω 1", "ω 3"))
    for trial in trials(first.parent, "first"):
        rungs = read_rungs(trial.folder(first))
        assert [rung.step for rung in rungs] == [2, 4]
        assert all(rung.measured is not None and len(rung.measured.values["negatives"]) == 6 for rung in rungs)
        assert len(read_ledger(trial.folder(first))) == 4 * 8
        assert not list(trial.folder(first).glob("snapshots/step-*")), "weights of a rung are removed once it is measured"
        assert not list(trial.folder(first).rglob("engine.safetensors")), "a finished trial needs no checkpoints"
    page = (first / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * 6  # base and two trials, six prompts
    best = load(first / "best.toml")
    (chosen,) = [line for line in lines.values() if line["best"]]
    told = best.preference.objective.model_dump()
    assert told["omega_win"] == told["omega_lose"] == chosen["omega_win"]
    assert best.expert.adapter == first / "expert" / "adapter"


def test_trials_are_nested_runs_and_the_best_is_tagged_and_registered(first: Path, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{first.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cpo")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs["first"]
    for name in ("ω 1", "ω 3"):
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[name].info.status == "FINISHED"
        # Each rung, and once more at the end, with the ends of the interval.
        assert [entry.step for entry in client.get_metric_history(runs[name].info.run_id, "negatives")] == [2, 4, 4]
        assert [entry.step for entry in client.get_metric_history(runs[name].info.run_id, "negatives.low")] == [4]
        assert len(client.get_metric_history(runs[name].info.run_id, "loss")) == 4
        card = client.download_artifacts(runs[name].info.run_id, "adapter/adapter_weights/README.md", str(tmp_path))
        assert f"\n| {name} | " in Path(card).read_text()
    (best,) = [run for run in runs.values() if run.data.tags.get("best") == "true"]
    assert client.get_model_version_by_alias("first-adapter", "best").run_id == best.info.run_id


def written(folder: Path) -> dict[Path, int]:
    """When each target shard was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "targets").rglob("*.safetensors")}


def until(condition: Callable[[], object]) -> None:
    """Look again and again, for ten minutes at most."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def test_a_killed_sweep_over_other_values_goes_on_with_what_was_left_and_calls_no_expert(first: Path, folder: Path) -> None:
    """The driver is killed outright, in a process of its own, once the first of its trials has finished."""
    shards = written(folder)
    space = "sweep.space={ omega = [1.7], beta = [50.0, 5000.0] }"
    arguments = settings(folder, "killed", space, "sweep.max_concurrent=1")
    address = ray.get_runtime_context().gcs_address

    def finished() -> list[Trial]:
        assert driver.poll() is None, (folder / "log").read_text()[-3000:]
        return [trial for trial in trials(folder, "killed") if trial.status == "finished"]

    with (folder / "log").open("w") as log:
        command = [sys.executable, str(ROOT / "tune" / "search_cpo.py"), *arguments]
        environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            until(finished)
        finally:
            driver.kill()
            driver.wait(30)
    (done,) = [trial for trial in trials(folder, "killed") if trial.status == "finished"]
    adapter = done.folder(folder / "killed") / "adapter" / "pytorch_lora_weights.safetensors"
    trained = adapter.stat().st_mtime_ns
    described = load(TOY, arguments)
    with pytest.raises(ConfigError, match="already holds a run; pass --resume"):
        search(described)
    report = search(described, resume=True)
    assert (report.expert_forwards, report.shards_written) == (0, 0)
    assert written(folder) == shards, "the driver that was killed has called the expert"
    assert [trial.status for trial in trials(folder, "killed")] == ["finished"] * 2
    assert adapter.stat().st_mtime_ns == trained, "a finished trial was run again"
    assert all(len(read_ledger(trial.folder(folder / "killed"))) == 4 * 8 for trial in trials(folder, "killed"))
    # What trials differ in reaches the loss: from the same start, β scales how far the logistic is from its middle.
    held_out = [read_rungs(trial.folder(folder / "killed"))[0].held_out["loss"] for trial in trials(folder, "killed")]
    assert held_out[0] != held_out[1]


def test_a_trial_that_dies_is_started_again_one_that_explodes_ends_and_the_others_go_on(first: Path, folder: Path) -> None:
    """The process of one trial is killed as a lack of memory would, as soon as a training has written a checkpoint."""
    space = "sweep.space={ learning_rate = [1e-4, 2e-4, 1e30] }"
    described = config(folder, "crashed", space, "preference.optimization.steps=12", "sweep.rungs=4")
    killed: list[int] = []

    def kill_one() -> None:
        until(lambda: list((folder / "crashed").glob("trials/*/rungs/step-*.json")))
        driver = processes("ImplicitFunc")[0]
        driver.kill()
        killed.append(driver.pid)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    search(described)
    thread.join(10)
    assert killed
    found = {float(trial.point["learning_rate"]): trial for trial in trials(folder, "crashed")}
    exploded = found.pop(1e30)
    assert exploded.status == "diverged" and exploded.sentence.startswith("training stopped: the ")
    kept = {path.parents[2] for path in (folder / "crashed").rglob("engine.safetensors")}
    assert kept <= {exploded.folder(folder / "crashed")}, "only what diverged keeps its checkpoints"
    assert [trial.status for trial in found.values()] == ["finished"] * 2
    for trial in found.values():
        assert [rung.step for rung in read_rungs(trial.folder(folder / "crashed"))] == [3, 6, 9, 12]
        assert len(read_ledger(trial.folder(folder / "crashed"))) == 12 * 8
    lines = {line["learning_rate"]: line for line in pq.read_table(folder / "crashed" / "results.parquet").to_pylist()}
    assert lines[1e30]["status"] == "diverged" and not lines[1e30]["best"]
    assert sorted(lines[rate]["best"] for rate in found) == [False, True]


def test_tpe_with_a_scheduler_searches_the_settings_of_an_objective_from_outside(first: Path, folder: Path) -> None:
    pull = "support.outside.objective:PULL"
    space = f"{{ omega = {{ low = 1.0, high = 3.0 }}, objective = ['cpo', '{pull}'], preference.lora.rank = [2, 4], "
    space += "preference.objective.strength = { low = 1.0, high = 2.0 } }"
    more = ("sweep.search=multi_objective", "sweep.scheduler=asha", "sweep.trials=4")
    search(config(folder, "searched", f"sweep.space={space}", *more))
    found = trials(folder, "searched")
    assert len(found) == 4 and {trial.status for trial in found} <= {"finished", "stopped"}
    assert all(1 <= float(trial.point["omega"]) <= 3 for trial in found)
    objectives = {trial.point["objective"] for trial in found}
    assert objectives == {"cpo", pull}
    assert all(("preference.objective.strength" in trial.point) == (trial.point["objective"] == pull) for trial in found)
    assert not list((folder / "searched" / "trials").rglob("engine.safetensors"))
    assert json.loads((found[0].folder(folder / "searched") / "trial.json").read_text())["mlflow_run_id"]
    lines = pq.read_table(folder / "searched" / "results.parquet").to_pylist()
    own = [line for line in lines if line["objective"] == pull]
    assert own and all(1 <= line["preference.objective.strength"] <= 2 and line["beta"] is None for line in own)
    assert {line["preference.lora.rank"] for line in lines} <= {2, 4, None}  # the base has none
    assert "Over strength" in (folder / "searched" / "report.html").read_text()


def test_when_the_time_is_over_nothing_goes_on_and_the_trials_stay_open(first: Path, folder: Path) -> None:
    long = ("preference.optimization.steps=5000", "sweep.minutes=0.3", "sweep.space={ omega = [1.0, 2.0, 3.0] }")
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
    assert findings(config(folder, "small"))[-1].sentence == "sweep: 5 trials by search 'grid', 2 at once"


def test_pictures_that_nothing_can_measure_cannot_guide_a_search(folder: Path) -> None:
    described = config(
        folder, "blind", "domain.use=none", "domain.pictures=0", "model.base=some/model", "sweep.search=tpe", "sweep.trials=3"
    )
    with pytest.raises(ConfigError, match="goes by scores, and nothing scores pictures here"):
        search(described)

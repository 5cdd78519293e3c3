"""A training under Ray Train whose worker is killed in the middle, resumed, against one that nothing happened to."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from safetensors.torch import load_file
from support.processes import processes
from support.ranks import Ranks
from support.tiny_training import make_spec, write_base, write_targets

from cpo_ray.training.artifacts.ledger import check_ledger, read_ledger
from cpo_ray.training.driver import TrainingError, train
from cpo_ray.training.engine.engine import Engine
from cpo_ray.training.health import TrainingHealthError
from cpo_ray.training.worker import Trainer, TrainSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

STEPS = 8


def logged(spec: TrainSpec) -> list[tuple[int, float]]:
    """Each logged step with its loss."""
    path = spec.output / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["step"], line["loss"]) for line in lines]


def logged_steps(spec: TrainSpec) -> list[int]:
    return [step for step, _ in logged(spec)]


def kill_after(spec: TrainSpec, steps: int) -> Future[int]:
    """Kill this Ray's train workers outright, as a lack of memory would, once so many steps are logged; tell how many."""

    def kill() -> int:
        while len(logged_steps(spec)) < steps:
            time.sleep(0.1)
        workers = processes("RayTrainWorker")
        for worker in workers:
            worker.kill()
        return len(workers)

    return ThreadPoolExecutor(1).submit(kill)


@dataclass(frozen=True)
class OneBitFlipped:
    """Changes the last bit of one trained weight in the process that logs, rank 0's, after a step."""

    step: int

    def start(self) -> OneBitFlipped:
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.step:
            (engine,) = [found for found in gc.get_objects() if type(found) is Engine]
            weight = next(p for p in engine.denoiser.parameters() if p.requires_grad)
            weight.data.view(torch.int32).view(-1)[0] ^= 1

    def close(self) -> None:
        pass


def _straight(spec: TrainSpec) -> list[float]:
    """Train all steps and export, without Ray and without an interruption; returns the loss of each step."""
    torch.set_num_threads(1)
    trainer = Trainer(spec)
    metrics = [trainer.step(step) for step in range(STEPS)]
    trainer.export(spec.output / "adapter", metrics[-1])
    return [each["loss"] for each in metrics]


def test_a_killed_and_resumed_training_is_the_uninterrupted_one(single: Ranks, tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    model = write_base(tmp_path / "base", channels=(32,))
    settings = {"checkpoint_every": 2, "max_failures": 1, "learning_rate": 1e-2}
    spec = make_spec(tmp_path, model, optimization=settings, steps=STEPS, run_id="killed", output=tmp_path / "killed")
    spec = replace(spec, plan=replace(spec.plan, draws=5), snapshots=True)
    # 8 shards hold items 0 to 31, so the worker waits in step 5, which needs items 30 to 35, one step after a checkpoint.
    write_targets(spec, 0, 8)
    killed = kill_after(spec, 5)
    # It is started again, waits for targets that nobody makes, and gives up.
    with pytest.raises(TrainingError, match="'killed' failed 2 times") as failed:
        train(replace(spec, timeout_seconds=10.0))
    assert killed.done() and killed.result() == 1, failed.value
    assert logged_steps(spec) == [0, 1, 2, 3, 4]
    assert {step for step, _ in read_ledger(spec.output)} == {0, 1, 2, 3}

    with (spec.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # the process died while it wrote
    write_targets(spec, 8)
    shutil.copytree(spec.output, tmp_path / "widened")
    with pytest.raises(TrainingError, match="already holds a training"):
        train(spec)
    with pytest.raises(TrainingError, match=r"started with objective\.omega_win = 2\.0"):
        train(replace(spec, objective=spec.objective.model_copy(update={"omega_win": 3.0}), resume=True))
    resumed = train(replace(spec, resume=True))
    assert (resumed.steps, resumed.trained_steps, resumed.ledger_problem) == (STEPS, STEPS - 4, None)
    assert logged_steps(spec) == list(range(STEPS))
    assert check_ledger(spec.plan, read_ledger(spec.output)) is None
    assert len(list((spec.output / "killed").glob("step-*"))) == 2, "older checkpoints are removed"

    again = train(replace(spec, resume=True))
    assert again.trained_steps == 0
    assert "nothing was left to train" in again.sentence

    straight = replace(spec, output=tmp_path / "straight")
    (losses,) = single(_straight, straight)
    name = "pytorch_lora_weights.safetensors"
    assert (resumed.adapter / name).read_bytes() == (straight.output / "adapter" / name).read_bytes()
    assert any(tensor.any() for tensor in load_file(resumed.adapter / name).values())
    assert resumed.metrics["loss"] == losses[-1]

    snapshots = sorted((spec.output / "snapshots").iterdir())
    assert [folder.name for folder in snapshots] == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    weights = [(folder / name).read_bytes() for folder in snapshots]
    assert len(set(weights)) == 4 and weights[-1] == (resumed.adapter / name).read_bytes()

    # The same, gone on with by three workers, one of which goes wrong after a checkpoint of theirs. Nothing is tried again: a
    # failure of the workers would be, but wrong numbers stay wrong.
    wider = spec.optimization.model_copy(update={"workers": 3, "cpus_per_worker": 0.5, "max_failures": 3})
    other = replace(spec, optimization=wider, output=tmp_path / "widened", resume=True, tracking=OneBitFlipped(6))
    named = "after step 7 the weights of rank 0 differ from those of the other ranks, by a fault of a machine"
    with pytest.raises(TrainingHealthError, match=rf"{named}.*the last good checkpoint is {other.output}/killed/step-00000006; "):
        train(other)
    # The same items, and the same numbers but for rounding, by other ranks.
    assert [loss for _, loss in logged(other)] == pytest.approx(losses, rel=1e-3)
    planned = [(step, item) for step in range(6) for item in spec.plan.step(step).planned]
    assert sorted(read_ledger(other.output)) == sorted(planned)


def test_more_workers_than_the_cluster_has_are_refused_before_anything_starts(tmp_path: Path) -> None:
    model = write_base(tmp_path / "base", channels=(32,))
    spec = make_spec(tmp_path, model, optimization={"workers": 3})
    with pytest.raises(TrainingError, match=r"3 workers with 1 CPUs each need 3 CPUs, and the cluster has 2"):
        train(spec)
    assert not spec.output.exists()

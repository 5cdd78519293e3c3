"""Every ZeRO stage, LoRA and full, one rank and two: one training; and one that goes on with other ranks at another stage."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ranks import Ranks
from support.tiny_training import make_spec, write_base, write_targets
from torch import Tensor, distributed

from cpo_ray.config import Optimization
from cpo_ray.config import optimization as settings
from cpo_ray.training.engine.engine import STATE, Engine
from cpo_ray.training.health import TrainingHealthError
from cpo_ray.training.worker import Trainer, TrainSpec, _warnings

pytestmark = pytest.mark.slow

Numbers = dict[str, Any]
KINDS = {"lora": {}, "full": {"parameters": "full", "learning_rate": 1e-4}}
#: In this order, since ZeRO-3 replaces torch's linear function for the whole process.
STAGES: tuple[Any, ...] = (0, 1, 2, 3)


def at(spec: TrainSpec, **changes: Any) -> TrainSpec:
    return replace(spec, optimization=spec.optimization.model_copy(update=changes))


def _weights(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in trainer.engine.trained_state().items()}


def _numbers(trainer: Trainer, metrics: list[dict[str, float]]) -> Numbers:
    with trainer.engine.averaged():
        average, held = _weights(trainer), trainer.held_out()["distance_to_reference"]
    return {"metrics": metrics, "state": _weights(trainer), "average": average, "held": held, "trained": list(trainer.trained)}


def _matrix(spec: TrainSpec) -> dict[str, Numbers]:
    made = {}
    for stage in STAGES:
        for kind, changes in KINDS.items():
            trainer = Trainer(at(spec, zero_stage=stage, **changes))
            made[f"{kind} {stage}"] = _numbers(trainer, [trainer.step(step) for step in range(2)])
    return made


def _in_small_buckets(spec: TrainSpec) -> dict[int, Numbers]:
    """The same with gradients that are reduced, gathered and updated in many parts, one weight of them larger than a part."""
    usual, made = settings.LARGEST_BUCKET, {}
    settings.LARGEST_BUCKET = 2**12
    try:
        for stage in STAGES:
            trainer = Trainer(at(spec, zero_stage=stage, **KINDS["full"]))
            made[stage] = _numbers(trainer, [trainer.step(step) for step in range(2)])
    finally:
        settings.LARGEST_BUCKET = usual
    return made


def _offloaded(spec: TrainSpec) -> dict[int, Numbers]:
    """The same with optimizer and moving average in main memory, two micro-batches a step, by ZeRO stage."""
    made = {}
    for stage in STAGES[1:]:
        trainer = Trainer(at(spec, zero_stage=stage, offload_optimizer=True, micro_batch=2))
        assert trainer.engine.accumulation == 2
        made[stage] = _numbers(trainer, [trainer.step(step) for step in range(2)])
    return made


def _bytes_in_backward() -> dict[int, int]:
    """The most bytes of one tensor near the end of the backward pass of a model of 512 weights, by stage."""
    largest: dict[int, int] = {}
    for stage in STAGES:
        model = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False), torch.nn.Linear(16, 16, bias=False))
        engine = Engine(model, Optimization(steps=1, parameters="full", zero_stage=stage), micro_batch=1, accumulation=1)
        inputs = torch.ones(1, 16, requires_grad=True)
        inputs.register_hook(partial(_note_largest, largest, stage))
        engine.backward(engine.model(inputs).sum())
        engine.step(1e-3)
    return largest


def _note_largest(largest: dict[int, int], stage: int, _: Tensor) -> None:
    tensors: list[Tensor] = [found for found in gc.get_objects() if type(found) in (Tensor, torch.nn.Parameter)]
    largest[stage] = max(found.untyped_storage().nbytes() for found in tensors)


def _by_hand(spec: TrainSpec) -> Numbers:
    """The average of the weights after each step, as the formula says."""
    trainer = Trainer(spec)
    warned = _warnings(trainer, 0)
    average = _weights(trainer)
    for step in range(2):
        trainer.step(step)
        decay = min(spec.optimization.ema_decay, (2 + step) / (11 + step))
        average = {name: decay * average[name] + (1 - decay) * values for name, values in _weights(trainer).items()}
    return {"by hand": average, "warned": (warned, _warnings(trainer, 2)), **_numbers(trainer, [])}


def _part(spec: TrainSpec, steps: range, before: Path | None, after: Path) -> Numbers:
    """Some steps, from the file that others left to a file for others."""
    trainer = Trainer(spec)
    if before is not None:
        trainer.engine.load(before)
    metrics = [trainer.step(step) for step in steps]
    after.mkdir(exist_ok=True)
    trainer.engine.save(after)
    distributed.barrier()
    return _numbers(trainer, metrics)


def _built(spec: TrainSpec) -> None:
    Trainer(spec)


def _diverged(spec: TrainSpec) -> list[str | None]:
    trainer = Trainer(spec)
    trainer.step(0)
    told = [trainer.difference(0)]
    if trainer.rank == 1:
        weight = next(p for p in trainer.engine.denoiser.parameters() if p.requires_grad)
        weight.data.view(torch.int32).view(-1)[0] ^= 1  # the last bit of one weight
    return [*told, trainer.difference(0)]


def _small(folder: Path, **changes: Any) -> list[list[float]]:
    """A layer whose gradient is 1 everywhere: a weight after each of four steps, and after the last two of them from a file."""

    def steps(engine: Engine, count: int) -> list[float]:
        after = []
        for _ in range(count):
            engine.backward(engine.model(torch.ones(1, 3, dtype=torch.bfloat16)).float().sum())
            engine.step(1e-3)
            after += [float(weight[1, 2]) for weight in engine.trained_state().values()]  # on rank 0 alone at ZeRO-3
        return after

    def engine() -> Engine:
        layer = torch.nn.Linear(3, 2, bias=False)
        layer.weight.data.fill_(0.0625)
        chosen = Optimization(steps=4, parameters="full", gradient_clip=0, **changes)
        return Engine(layer, chosen, micro_batch=1, accumulation=1, bfloat16=True)

    first, second = engine(), engine()
    after = steps(first, 2)
    folder.mkdir(exist_ok=True)
    first.save(folder)
    distributed.barrier()
    second.load(folder)
    return [[*after, *steps(first, 2)], steps(second, 2)]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    folder = tmp_path_factory.mktemp("training")
    chosen = {"gradient_clip": 0.5, "ema_decay": 0.25, "micro_batch": 3}
    spec = make_spec(folder, write_base(folder / "base", channels=(32,)), optimization=chosen)
    write_targets(spec)
    return replace(spec, held_out=replace(spec.plan, total_items=5))


@pytest.fixture(scope="module")
def matrix(spec: TrainSpec, pair: Ranks, single: Ranks) -> dict[str, Numbers]:
    by_ranks = {2: pair(_matrix, spec)[0], 1: single(_matrix, spec)[0]}
    return {f"{ranks} {name}": numbers for ranks, made in by_ranks.items() for name, numbers in made.items()}


@pytest.fixture(scope="module")
def small_buckets(spec: TrainSpec, pair: Ranks, matrix: dict[str, Numbers]) -> dict[int, Numbers]:
    made: dict[int, Numbers] = pair(_in_small_buckets, spec)[0]
    return made


@pytest.fixture(scope="module")
def offloaded(spec: TrainSpec, pair: Ranks, matrix: dict[str, Numbers]) -> dict[int, Numbers]:
    made: dict[int, Numbers] = pair(_offloaded, spec)[0]
    return made


def near(numbers: Numbers, others: Numbers, tolerance: float) -> None:
    """The same curves, weights and averages, but for the order of additions. Adam divides by what may be next to nothing."""
    for name in ("loss", "gradient_norm"):
        curve = [metrics[name] for metrics in numbers["metrics"]]
        assert curve == pytest.approx([metrics[name] for metrics in others["metrics"]], rel=1e-4)
    for kind in ("state", "average"):
        assert {name: values.shape for name, values in numbers[kind].items()} == {
            name: values.shape for name, values in others[kind].items()
        }
        for name, values in numbers[kind].items():
            assert np.abs(values - others[kind][name]).mean() < tolerance, name
    assert numbers["held"] == pytest.approx(others["held"], rel=1e-2)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_stage_and_ranks_change_nothing(matrix: dict[str, Numbers], kind: str, stage: int, ranks: int) -> None:
    rate = {"lora": 1e-2, "full": 1e-4}[kind]
    near(matrix[f"{ranks} {kind} {stage}"], matrix[f"1 {kind} 0"], tolerance=0.01 * rate)


@pytest.mark.parametrize("stage", STAGES)
def test_small_buckets_change_nothing(small_buckets: dict[int, Numbers], matrix: dict[str, Numbers], stage: int) -> None:
    near(small_buckets[stage], matrix["1 full 0"], tolerance=0.01 * 1e-4)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_an_optimizer_in_main_memory_changes_nothing(
    offloaded: dict[int, Numbers], matrix: dict[str, Numbers], stage: int
) -> None:
    near(offloaded[stage], matrix["1 lora 0"], tolerance=0.01 * 1e-2)


def test_buffers_are_no_larger_than_what_is_trained(single: Ranks) -> None:
    # The rank keeps some small models of other tests.
    too_large = {stage: held for stage, held in single(_bytes_in_backward)[0].items() if held > 2**24}
    assert not too_large, f"beside 512 weights, a tensor of so many bytes at these stages: {too_large}"


def test_the_average_is_that_of_the_weights_after_each_step(spec: TrainSpec, single: Ranks) -> None:
    (numbers,) = single(_by_hand, spec)
    for name, values in numbers["by hand"].items():
        np.testing.assert_allclose(numbers["average"][name], values, rtol=1e-5, atol=1e-8)
    assert any(np.abs(numbers["average"][name] - values).max() > 1e-3 for name, values in numbers["state"].items())
    before, after = numbers["warned"]
    assert "not one weight has changed in float32" in before[0] and after == ()


def test_a_training_goes_on_with_other_ranks_at_another_stage(
    spec: TrainSpec, matrix: dict[str, Numbers], pair: Ranks, single: Ranks, tmp_path: Path
) -> None:
    """Two ranks at ZeRO-2, then one without ZeRO, then two at ZeRO-3, against one rank all the way."""
    (straight,) = single(_part, spec, range(4), None, tmp_path / "straight")
    first = pair(_part, at(spec, zero_stage=2), range(2), None, tmp_path / "first")
    second = single(_part, at(spec, micro_batch=2), range(2, 3), tmp_path / "first", tmp_path / "second")
    third = pair(_part, at(spec, zero_stage=3), range(3, 4), tmp_path / "second", tmp_path / "third")
    parts = [first[0], second[0], third[0]]
    near({**third[0], "metrics": [metrics for part in parts for metrics in part["metrics"]]}, straight, tolerance=2e-4)
    trained = [entry for part in (first, second, third) for numbers in part for entry in numbers["trained"]]
    assert sorted(trained) == sorted((step, item) for step in range(4) for item in spec.plan.step(step).planned)


def test_a_bfloat16_model_goes_on_at_any_stage(spec: TrainSpec, pair: Ranks, single: Ranks, tmp_path: Path) -> None:
    full = replace(at(spec, **KINDS["full"]), model=spec.model.model_copy(update={"dtype": "bfloat16"}))
    (straight,) = single(_part, full, range(3), None, tmp_path / "straight")
    parts = [
        pair(_part, at(full, zero_stage=3), range(1), None, tmp_path / "first")[0],
        single(_part, full, range(1, 2), tmp_path / "first", tmp_path / "second")[0],
        pair(_part, at(full, zero_stage=1), range(2, 3), tmp_path / "second", tmp_path / "third")[0],
    ]
    losses = [metrics["loss"] for part in parts for metrics in part["metrics"]]
    assert losses == pytest.approx([metrics["loss"] for metrics in straight["metrics"]], rel=0.02)
    for name, values in straight["state"].items():
        assert values.dtype == np.float32
        # The masters move by 1e-4 in a step, which these weights would not show in bfloat16.
        assert np.abs(parts[-1]["state"][name] - values).mean() < 5e-5, name


def test_the_file_of_another_training_is_refused(spec: TrainSpec, single: Ranks, tmp_path: Path) -> None:
    single(_part, spec, range(0), None, tmp_path / "other")
    with pytest.raises(ValueError, match=rf"{STATE} is of another training: 'weights/.*' differs here"):
        single(_part, at(spec, **KINDS["full"]), range(0), tmp_path / "other", tmp_path / "own")
    with pytest.raises(ValueError, match="holds no checkpoint of this training"):
        single(_part, spec, range(0), tmp_path, tmp_path / "own")


def test_a_rate_that_bfloat16_swallows_is_refused_before_the_first_step(spec: TrainSpec, single: Ranks) -> None:
    full = at(spec, parameters="full", learning_rate=1e-9)
    with pytest.raises(TrainingHealthError, match="bfloat16 shows so small a change in"):
        single(_built, replace(full, model=spec.model.model_copy(update={"dtype": "bfloat16"})))
    single(_built, full)  # float32 shows it


def test_ranks_that_differ_in_one_bit_are_named(spec: TrainSpec, pair: Ranks) -> None:
    for before, after in pair(_diverged, spec):
        assert before is None
        assert after is not None and after.startswith("after step 0 the weights of ranks 0, 1 differ from each other")


def test_adafactor_steps_by_the_learning_rate_and_goes_on_from_its_factors(single: Ranks, tmp_path: Path) -> None:
    """A constant gradient g has the factored second moment g², so every step is the rate, whatever the size of the weights."""
    (straight, continued) = single(partial(_small, optimizer="adafactor"), tmp_path)[0]
    assert straight == pytest.approx([0.0625 - 1e-3 * step for step in (1, 2, 3, 4)], abs=1e-7)
    assert continued == straight[2:]


def test_two_ranks_at_zero_3_go_on_from_a_checkpoint_exactly(pair: Ranks, tmp_path: Path) -> None:
    straight, continued = pair(partial(_small, zero_stage=3), tmp_path)[0]
    assert straight[0] > straight[1] > straight[2] > straight[3] and continued == straight[2:]

"""DeepSpeed in processes of its own, one and two of them, on one small training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ranks import Ranks
from support.tiny_training import IDS, make_spec, write_base, write_targets
from torch import distributed

from cpo_ray.config import Model, Optimization
from cpo_ray.core.plan import Plan
from cpo_ray.models import family
from cpo_ray.objectives import ViewOutputs
from cpo_ray.objectives.preference import PreferenceSettings
from cpo_ray.training.engine.engine import Engine
from cpo_ray.training.schedule import learning_rate_at
from cpo_ray.training.worker import Trainer, TrainSpec

pytestmark = pytest.mark.slow

Numbers = dict[str, Any]


def _train(spec: TrainSpec, steps: range | None = None, trainer: Trainer | None = None) -> Numbers:
    trainer = trainer or Trainer(spec)
    names = {name: tuple(p.shape) for name, p in family(spec.model).load_denoiser(spec.model).named_parameters()}
    metrics = [trainer.step(step) for step in steps or range(spec.plan.steps)]
    state = {name: tensor.numpy() for name, tensor in trainer.engine.trained_state().items()}
    return {"metrics": metrics, "state": state, "base": names, "trained": list(trainer.trained)}


def _continued(spec: TrainSpec, folder: Path, steps: int) -> Numbers:
    """Half of the steps, a save, and the rest by a new engine."""
    trainer = Trainer(spec)
    _train(spec, range(steps // 2), trainer)
    folder.mkdir(exist_ok=True)
    trainer.engine.save(folder)
    distributed.barrier()
    second = Trainer(spec)
    second.engine.load(folder)
    return _train(spec, range(steps // 2, steps), second)


def _looked_at(spec: TrainSpec) -> Numbers:
    """A training that is looked at after two of its four steps; then a step on the very items that it was looked at with."""
    held_out = Plan(tuple(IDS), seed=9, global_batch=6, draws=1, total_items=5)
    trainer = Trainer(replace(spec, held_out=held_out))
    first = _train(spec, range(2), trainer)
    seen = trainer.held_out()
    last = _train(spec, range(2, 4), trainer)
    again = trainer.held_out()
    trainer.spec = replace(trainer.spec, plan=held_out)
    return {"first": first, "seen": seen, "state": last["state"], "again": again, "stepped": trainer.step(0)}


def _two_ranks(spec: TrainSpec, folder: Path) -> Numbers:
    def stage(number: int, **more: Any) -> TrainSpec:
        changes = {"zero_stage": number, **more}
        return replace(spec, optimization=spec.optimization.model_copy(update=changes))

    half = spec.model.model_copy(update={"dtype": "bfloat16"})
    return {
        "stage 0": _train(stage(0)),
        "continued 0": _continued(stage(0), folder / "0", 4),
        "looked at": _looked_at(stage(0)),
        "full 0": _train(stage(0, parameters="full", learning_rate=1e-4), range(1)),
        **{f"bfloat16 {number}": _train(replace(stage(number), model=half), range(3)) for number in (0, 2)},
    }


def _one_rank(spec: TrainSpec) -> Numbers:
    return {"trained": _train(spec), "norm": _norm_by_torch(spec), "looked at": _looked_at(spec)}


def _norm_by_torch(spec: TrainSpec) -> float:
    """The first step's gradient norm, of the plain mean over its six items, without DeepSpeed."""
    trainer = Trainer(replace(spec, optimization=spec.optimization.model_copy(update={"micro_batch": 6})))
    denoiser = trainer.family.load_denoiser(spec.model)
    trainer.family.add_lora(denoiser, spec.lora, spec.seed)
    targets = trainer.reader.batch(spec.plan.step(0))
    expert, settings = targets.expert, spec.objective
    assert expert is not None and isinstance(settings, PreferenceSettings)
    prediction = trainer.family.predict(denoiser, *targets.inputs(torch.float32))
    winning, losing = expert.winning(settings.omega_win), expert.losing(settings.omega_lose)
    outputs = ViewOutputs(prediction, None, expert.reference, winning, losing)
    trainer.objective((outputs,), settings)[0].mean().backward()
    return float(torch.stack([p.grad.norm() for p in denoiser.parameters() if p.grad is not None]).norm())


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    folder = tmp_path_factory.mktemp("training")
    model: Model = write_base(folder / "base", channels=(32,))
    spec = make_spec(folder, model, optimization={"gradient_clip": 0.5})
    write_targets(spec)
    return spec


@pytest.fixture(scope="module")
def two(spec: TrainSpec, pair: Ranks, tmp_path_factory: pytest.TempPathFactory) -> list[Numbers]:
    return pair(_two_ranks, spec, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(spec: TrainSpec, single: Ranks) -> Numbers:
    numbers: Numbers = single(_one_rank, spec)[0]
    return numbers


def curve(numbers: Numbers, name: str = "loss") -> list[float]:
    return [metrics[name] for metrics in numbers["metrics"]]


def test_the_first_gradient_is_that_of_the_mean_over_the_planned_items(one: Numbers, two: list[Numbers]) -> None:
    assert curve(one["trained"], "gradient_norm")[0] == pytest.approx(one["norm"], rel=1e-4)
    assert curve(two[0]["stage 0"], "gradient_norm")[0] == pytest.approx(one["norm"], rel=1e-4)


def test_one_rank_and_two_give_the_same_curves_even_where_a_step_is_padded(one: Numbers, two: list[Numbers]) -> None:
    for name in ("loss", "margin", "distance_to_reference", "gradient_norm"):
        assert curve(two[0]["stage 0"], name) == pytest.approx(curve(one["trained"], name), rel=1e-4)
    assert curve(one["trained"])[0] > curve(one["trained"])[-1], "the training does not learn, so the comparison says nothing"


def test_full_trains_every_parameter_and_lora_none_of_the_base(two: list[Numbers]) -> None:
    assert {name: values.shape for name, values in two[0]["full 0"]["state"].items()} == two[0]["full 0"]["base"]
    assert all("lora_" in name for name in two[0]["stage 0"]["state"])


def test_a_new_engine_goes_on_from_a_checkpoint_exactly(two: list[Numbers]) -> None:
    """At ZeRO-3 a small layer does, in test_engine_matrix."""
    straight, continued = two[0]["stage 0"], two[0]["continued 0"]
    assert curve(continued) == curve(straight)[len(curve(straight)) // 2 :]
    assert all((continued["state"][name] == values).all() for name, values in straight["state"].items())


def test_ranks_report_the_same_numbers_and_train_each_item_once(spec: TrainSpec, two: list[Numbers]) -> None:
    assert two[0]["stage 0"]["metrics"] == two[1]["stage 0"]["metrics"]
    planned = sorted((step, item) for step in range(4) for item in spec.plan.step(step).planned)
    assert sorted(two[0]["stage 0"]["trained"] + two[1]["stage 0"]["trained"]) == planned


@pytest.mark.parametrize("stage", [0, 2])
def test_bfloat16_follows_float32_coarsely(two: list[Numbers], stage: int) -> None:
    for name, tolerance in (("loss", 0.05), ("gradient_norm", 0.2)):
        assert curve(two[0][f"bfloat16 {stage}"], name) == pytest.approx(curve(two[0]["stage 0"], name)[:3], rel=tolerance)


@pytest.fixture(scope="module")
def flux(two: list[Numbers], pair: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    """After the others, since it uses ZeRO-3."""
    folder = tmp_path_factory.mktemp("flux")
    spec = make_spec(folder, write_base(folder / "base", "flux"), optimization={"gradient_clip": 0.5})
    write_targets(spec)
    numbers: dict[str, Numbers] = pair(_flux, spec)[0]
    return numbers


def _flux(spec: TrainSpec) -> dict[str, Numbers]:
    def trained(**changes: Any) -> Numbers:
        return _train(replace(spec, optimization=spec.optimization.model_copy(update=changes)))

    return {
        "plain": trained(),
        "recomputed": trained(gradient_checkpointing=True),
        "full": trained(zero_stage=2, parameters="full", learning_rate=1e-4),
        "stage 3": trained(zero_stage=3, gradient_checkpointing=True),
    }


@pytest.mark.parametrize("kind", ["recomputed", "stage 3"])
def test_flux_trains_alike_on_texts_of_any_length(flux: dict[str, Numbers], kind: str) -> None:
    for name in ("loss", "gradient_norm"):
        assert curve(flux[kind], name) == pytest.approx(curve(flux["plain"], name), rel=1e-4)
    assert curve(flux["plain"])[0] > curve(flux["plain"])[-1]
    assert all(values.size for values in flux["full"]["state"].values())
    assert {name: values.shape for name, values in flux["full"]["state"].items()} == flux["full"]["base"]


def _small_steps() -> dict[str, list[float]]:
    """A bfloat16 weight of 0.02 after 20 steps of 1e-5, none of which bfloat16 can hold: as exported, and as the model has it."""
    ends = {}
    for stage, offload in ((0, False), (1, False), (2, True), (3, False), (3, True)):
        layer = torch.nn.Linear(4, 4, bias=False)
        layer.weight.data.fill_(0.02)
        settings: dict[str, Any] = {
            "steps": 20,
            "zero_stage": stage,
            "offload_optimizer": offload,
            "parameters": "full",
            "gradient_clip": 0,
        }
        engine = Engine(layer, Optimization(**settings), micro_batch=1, accumulation=1, bfloat16=True)
        for _ in range(20):
            engine.backward(engine.model(torch.ones(1, 4, dtype=torch.bfloat16)).float().sum())
            engine.step(1e-5)
        output = engine.model(torch.ones(1, 4, dtype=torch.bfloat16))
        ends[f"{stage} {offload}"] = [float(engine.trained_state()["weight"][0, 0]), float(output[0, 0]) / 4]
    return ends


def test_small_steps_add_up_in_float32_under_a_bfloat16_model(one: Numbers, single: Ranks) -> None:
    assert float(torch.tensor(0.02).bfloat16() - torch.tensor(1e-5).bfloat16()) == float(torch.tensor(0.02).bfloat16())
    for exported, used in single(_small_steps)[0].values():
        assert exported == pytest.approx(float(torch.tensor(0.02).bfloat16()) - 20 * 1e-5, abs=2e-6)
        assert used == pytest.approx(0.0198, abs=1.3e-4) and used < 0.02


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    settings = Optimization(steps=10, learning_rate=1.0, warmup_steps=2, decay="cosine")
    rates = [learning_rate_at(step, 10, settings) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)  # half-way from step 2 to 10
    assert rates[9] == pytest.approx((1 - 0.9238795) / 2)  # cos(7π/8) = -0.9239
    constant = settings.model_copy(update={"decay": "constant"})
    shared = settings.model_copy(update={"warmup_steps": 0, "warmup_share": 0.2})
    assert [learning_rate_at(step, 10, shared) for step in range(10)] == rates
    assert learning_rate_at(0, 2, shared) == 1.0, "a few steps have no warm-up"
    assert [learning_rate_at(step, 10, constant) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_held_out_metrics_are_those_of_a_step_on_the_same_items_and_change_nothing(one: Numbers, two: list[Numbers]) -> None:
    looked_at = one["looked at"]
    for name in ("loss", "win", "lose", "distance_to_reference"):
        assert looked_at["again"][name] == pytest.approx(looked_at["stepped"][name], rel=1e-5)
        assert two[0]["looked at"]["seen"][name] == pytest.approx(looked_at["seen"][name], rel=1e-3, abs=1e-5)
    assert looked_at["seen"]["distance_to_reference"] > 0
    for name, tensor in one["trained"]["state"].items():
        np.testing.assert_array_equal(tensor, looked_at["state"][name])

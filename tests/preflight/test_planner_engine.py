"""What the planner says that an engine holds, against the tensors that are there when a real one trains."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import Ranks
from torch import nn

from cpo_ray.config import Optimization
from cpo_ray.preflight.engine_memory import checkpoint_bytes, engine_memory
from cpo_ray.training.engine.engine import STATE, Engine

pytestmark = pytest.mark.slow

SHAPES = [(256, 256)] * 3
#: Of each stage without and with what is optional there; ZeRO-3 comes last, since it changes torch for the process.
CASES: list[dict[str, Any]] = [
    {},
    {"optimizer": "adafactor", "ema_decay": 0.9},
    *({"zero_stage": stage, **more} for stage in (1, 2, 3) for more in ({"ema_decay": 0.9}, {"offload_optimizer": True})),
]


def settings(case: dict[str, Any], workers: int) -> Optimization:
    return Optimization(parameters="full", steps=10, workers=workers, **case)


def _held() -> int:
    found = {}
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, nn.Parameter) and each.device.type == "cpu":
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _measured(cases: list[dict[str, Any]], workers: int) -> dict[tuple[int, bool], int]:
    """Bytes of a rank by case and precision, when a backward pass has ended that followed a step."""
    made = {}
    gc.collect()
    gc.freeze()  # what is there already is no longer searched, which takes most of the time
    for number, case in enumerate(cases):
        for bfloat16 in (False, True):
            gc.collect()
            before = _held()
            model = nn.Sequential(*[nn.Linear(*shape, bias=False) for shape in SHAPES]).to(
                torch.bfloat16 if bfloat16 else torch.float32
            )
            engine = Engine(model, settings(case, workers), micro_batch=1, accumulation=1, bfloat16=bfloat16)
            inputs = torch.ones(1, 256, dtype=torch.bfloat16 if bfloat16 else torch.float32)
            for step in range(2):
                engine.backward(engine.model(inputs).float().square().mean())
                if step == 0:
                    engine.step(1e-4)
            gc.collect()
            made[number, bfloat16] = _held() - before
            engine.step(1e-4)
            engine._deepspeed.destroy()
            del engine, model
    gc.unfreeze()
    return made


@pytest.fixture(scope="module")
def measured(single: Ranks, pair: Ranks) -> dict[int, dict[tuple[int, bool], int]]:
    return {1: single(_measured, CASES, 1)[0], 2: pair(_measured, CASES, 2)[0]}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(f"{k}={v}" for k, v in case.items()) for case in CASES])
def test_an_engine_holds_what_was_planned(
    number: int, bfloat16: bool, workers: int, measured: dict[int, dict[tuple[int, bool], int]]
) -> None:
    memory = engine_memory(settings(CASES[number], workers), SHAPES, 0, 2 if bfloat16 else 4, workers)
    planned = memory.weights + memory.gradients + memory.optimizer + memory.average + memory.buffers + memory.host
    assert planned == pytest.approx(measured[workers][number, bfloat16], rel=0.06)


def _saved(folder: Path, case: dict[str, Any]) -> None:
    model = nn.Sequential(*[nn.Linear(*shape, bias=False) for shape in SHAPES])
    engine = Engine(model, settings(case, 1), micro_batch=1, accumulation=1)
    engine.backward(engine.model(torch.ones(1, 256)).square().mean())
    engine.step(1e-4)
    engine.save(folder)


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_a_checkpoint_is_as_large_as_planned(case: dict[str, Any], single: Ranks, tmp_path: Path) -> None:
    single(_saved, tmp_path, case)
    assert checkpoint_bytes(settings(case, 1), SHAPES) == pytest.approx((tmp_path / STATE).stat().st_size, rel=0.01)


def test_frozen_weights_count_and_are_shared_at_stage_three_alone() -> None:
    lora = Optimization(steps=1, workers=4)
    assert engine_memory(lora, [(4, 8)], 10**6, 2, 4).weights == 2 * (10**6 + 32)
    shared = engine_memory(lora.model_copy(update={"zero_stage": 3}), [(4, 8)], 10**6, 2, 4)
    assert shared.weights == 2 * (10**6 + 32) // 4
    assert shared.buffers == 2 * (10**6 + 32) + 2 * 32  # so few are gathered all at once


def test_adafactor_remembers_two_thirds_of_a_three_by_three_convolution() -> None:
    adafactor = Optimization(steps=1, optimizer="adafactor", parameters="full")
    assert engine_memory(adafactor, [(64, 32, 3, 3)], 0, 4, 1).optimizer == 4 * 64 * 32 * (3 + 3)
    assert engine_memory(adafactor, [(64, 32)], 0, 4, 1).optimizer == 4 * (64 + 32)
    assert engine_memory(adafactor, [(64,)], 0, 4, 1).optimizer == 4 * 64


def test_gradients_of_several_micro_batches_are_whole_at_stage_one() -> None:
    first = Optimization(steps=1, zero_stage=1, workers=2, parameters="full")
    once, often = (engine_memory(first, [(64, 32)], 0, 2, 2, accumulation=number) for number in (1, 4))
    assert often.passing - once.passing == 2 * 64 * 32

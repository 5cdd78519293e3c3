"""Objectives that the package does not know, through the trainer: one from outside, and one of two views."""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.outside.objective import PullSettings
from support.ranks import Ranks
from support.tiny_training import make_spec, write_base, write_targets
from torch import Tensor

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.models import family
from cpo_ray.models.base import Conditioning
from cpo_ray.objectives.sft import SupervisedSettings
from cpo_ray.targets.reader import TargetReader
from cpo_ray.training.artifacts.records import model_card
from cpo_ray.training.worker import Trainer, TrainSpec

pytestmark = pytest.mark.slow

PULL = PullSettings(name="support.outside.objective:PULL", omega_win=1.5, strength=3.0)


class Counted:
    """A family that writes down how many rows each forward has."""

    def __init__(self, found: Any) -> None:
        self.found, self.rows = found, list[int]()

    def predict(self, denoiser: Any, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        assert {len(timestep), *(len(values) for values in conditioning.values())} == {len(x_t)}
        self.rows.append(len(x_t))
        prediction: Tensor = self.found.predict(denoiser, x_t, timestep, conditioning)
        return prediction


def _train(specs: dict[str, TrainSpec]) -> dict[str, Any]:
    """The metrics of each step, the rows of each forward, and how far the adapter has moved."""
    made = {}
    for name, spec in specs.items():
        trainer = Trainer(spec)
        counted: Any = Counted(trainer.family)
        trainer.family = counted
        calls, function = list[str](), trainer.objective.function

        def listening(views: Any, settings: Any, calls: list[str] = calls, function: Any = function) -> Any:
            calls[:] = [frame.name for frame in traceback.extract_stack() if f"{os.sep}cpo_ray{os.sep}" in frame.filename]
            return function(views, settings)

        trainer.objective = replace(trainer.objective, function=listening)
        metrics = [trainer.step(step) for step in range(spec.plan.steps)]
        state = trainer.engine.trained_state()
        moved = max(float(values.abs().max()) for key, values in state.items() if "lora_B" in key)
        made[name] = {"metrics": metrics, "rows": counted.rows, "moved": moved, "calls": calls}
    return made


def first_loss(spec: TrainSpec) -> float:
    """strength · |z_w - ε|² of the base at the items of step 0, sample by sample."""
    reader, found = TargetReader(spec.targets, spec.plan.shards(spec.shard_size), 1.0, "none"), family(spec.model)
    batch = reader.batch(spec.plan.step(0))
    assert batch.expert is not None
    with torch.no_grad():
        output = found.predict(found.load_denoiser(spec.model), *batch.inputs(torch.float32))
    return float(3.0 * (batch.expert.winning(1.5) - output).square().mean())


def test_objectives_from_outside_train(single: Ranks, tmp_path: Path) -> None:
    model = write_base(tmp_path / "base", channels=(32,))
    pull = make_spec(tmp_path, model, optimization={"micro_batch": 3}, objective=PULL)
    write_targets(pull)
    specs = {
        "pull": pull,
        "once": replace(pull, objective=SupervisedSettings(name="sft")),
        "twice": replace(pull, objective=ObjectiveSettings(name="support.two_views:TWICE")),
    }
    made = single(_train, specs)[0]
    metrics = made["pull"]["metrics"]
    assert metrics[0]["loss"] == pytest.approx(first_loss(pull), rel=1e-5)
    # And the loss itself: three of the seven calls that it is away from the command line (see test_pipeline).
    assert made["pull"]["calls"] == ["step", "__call__"]
    assert metrics[-1]["loss"] < metrics[0]["loss"] and made["pull"]["moved"] > 0
    assert "distance_to_reference" in metrics[0] and "lose" not in metrics[0]
    card = model_card(pull, metrics[-1])
    assert (card["objective"], card["omega_win"], card["strength"]) == ("pull", "1.5", "3.0") and "beta" not in card

    # Both views of a micro-batch in one forward, which here are the same, so that two are as good as one.
    assert set(made["once"]["rows"]) == {3} and set(made["twice"]["rows"]) == {6}
    assert len(made["once"]["rows"]) == len(made["twice"]["rows"]) == 2 * pull.plan.steps
    for once, twice in zip(made["once"]["metrics"], made["twice"]["metrics"], strict=True):
        assert twice["loss"] == pytest.approx(once["loss"], rel=1e-4) and twice["apart"] < 1e-9
        assert twice["gradient_norm"] == pytest.approx(once["gradient_norm"], rel=1e-3)

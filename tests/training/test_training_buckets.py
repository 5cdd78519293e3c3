"""Steps over latents of two shapes, on two ranks with DeepSpeed: micro-batches of one shape, one mean over all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import Ranks
from support.tiny_training import IDS, make_spec, write_base, write_targets

from cpo_ray.config.registry import FAMILIES
from cpo_ray.core.plan import Batch, Plan
from cpo_ray.models import family
from cpo_ray.objectives.sft import SupervisedSettings
from cpo_ray.targets.reader import TargetReader
from cpo_ray.training.artifacts.ledger import check_ledger
from cpo_ray.training.worker import Trainer, TrainSpec

pytestmark = pytest.mark.slow

SHAPES = {name: (6, 10) if int(name[-1]) % 4 == 0 else (8, 8) for name in IDS}  # picture-0, -4 and -8 are wide


def tiny(folder: Path, family_name: Any) -> TrainSpec:
    """Two epochs in steps of 4, in groups of 2: ten groups in five steps, the last of each shape padded."""
    model = write_base(folder / "base", family_name, channels=(32,))
    spec = make_spec(folder, model, optimization={"global_batch": 4}, objective=SupervisedSettings(name="sft"))
    nine = {name: SHAPES[name] for name in IDS[:9]}
    plan = Plan.of_epochs(nine, seed=1, global_batch=4, draws=2, epochs=2, bucket_batch=2)
    held_out = Plan.of_epochs(nine, seed=2, global_batch=6, draws=1, epochs=1)
    spec = replace(spec, plan=plan, held_out=held_out, shards=tuple(plan.shards(4)))
    write_targets(spec, shapes=SHAPES)
    return spec


def _train(specs: list[TrainSpec]) -> list[dict[str, Any]]:
    """What rank 0 sees; the other one has trained its share of it."""
    made = []
    for spec in specs:
        trainer = Trainer(spec)
        held_out = trainer.held_out()
        metrics = [trainer.step(step) for step in range(spec.plan.steps)]
        moved = {name: float(value.abs().max()) for name, value in trainer.engine.trained_state().items() if "lora_B" in name}
        made.append({"held_out": held_out, "metrics": metrics, "moved": moved, "trained": list(trainer.trained)})
    return made


def expected_loss(spec: TrainSpec, items: list[Any]) -> float:
    """The mean squared error of the base, sample by sample."""
    reader, found = TargetReader(spec.targets, spec.shards, 1.0, "none"), family(spec.model)
    denoiser, errors = found.load_denoiser(spec.model), []
    for item in items:
        batch = reader.batch(Batch((item,), (1.0,)))
        (picture,) = batch.pictures
        assert picture.target is not None and picture.x_t.shape[2:] == SHAPES[item.sample_id]
        with torch.no_grad():
            output = found.predict(denoiser, *batch.inputs(torch.float32))
        errors.append(float((output - picture.target).square().mean()))
    return sum(errors) / len(errors)


def test_two_shapes_in_one_step_on_two_ranks(pair: Ranks, tmp_path: Path) -> None:
    specs = [tiny(tmp_path / name, name) for name in FAMILIES.names]
    first, second = pair(_train, specs)
    for spec, one, two in zip(specs, first, second, strict=True):
        shapes = [{SHAPES[item.sample_id] for item in spec.plan.step(k).planned} for k in range(spec.plan.steps)]
        assert (8, 8) in shapes[0] and any(len(found) == 2 for found in shapes)
        # The adapter begins without effect, so the first numbers are the base's.
        planned = list(spec.plan.step(0).planned)
        assert one["metrics"][0]["loss"] == pytest.approx(expected_loss(spec, planned), rel=1e-4)
        assert spec.held_out is not None and spec.held_out.steps == 2
        everything = spec.held_out.production_order()
        assert one["held_out"]["loss"] == pytest.approx(expected_loss(spec, everything), rel=1e-4)
        assert min(one["moved"].values()) > 0
        assert check_ledger(spec.plan, one["trained"] + two["trained"]) is None

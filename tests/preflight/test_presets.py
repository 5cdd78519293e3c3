"""Every shipped configuration takes an optimisation step in both of its stages, with a tiny base in place of the hub's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import Ranks
from support.tiny_training import make_spec, write_base, write_targets

from cpo_ray.config import Config, Optimization, load
from cpo_ray.objectives.sft import SupervisedSettings
from cpo_ray.training.worker import Trainer, TrainSpec

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.toml"))
    if not path.stem.startswith(("annotate", "review"))
]

pytestmark = pytest.mark.slow


def stages(config: Config, folder: Path) -> list[TrainSpec]:
    """The trainings of a preset, with steps of six small samples on one rank; all else is as the preset says."""
    settings, model = config.preference, write_base(folder / "base", config.model.family)
    model = model.model_copy(update={"dtype": config.model.dtype, "flow": config.model.flow})
    specs = []
    # β stays small: targets are random numbers here, far from the base's outputs, and the preset's would saturate the loss.
    small_beta = settings.objective.model_copy(update={"beta": 1.0})
    for name, lora, optimization, objective in (
        ("expert", config.expert.lora, config.expert.optimization, SupervisedSettings(name="sft")),
        ("preference", settings.lora, settings.optimization, small_beta),
    ):
        small: dict[str, Any] = {"steps": 64, "epochs": None, "global_batch": 6, "micro_batch": 2, "workers": 1}
        small |= {"warmup_steps": 0, "warmup_share": 0.0}
        spec = make_spec(folder / name, model, optimization=optimization.model_dump() | small, steps=64, objective=objective)
        specs.append(replace(spec, lora=lora))
    for spec in specs:
        write_targets(spec)
    return specs


def _step(specs: list[TrainSpec]) -> list[tuple[Optimization, dict[str, float], float]]:
    """Settings, the first step's metrics, and how far the weights went."""
    made = []
    for spec in specs:
        trainer = Trainer(spec)
        before = trainer.engine.trained_state()
        metrics = trainer.step(0)
        after = trainer.engine.trained_state()
        moved = max(float((after[name] - before[name]).abs().max()) for name in before)
        made.append((spec.optimization, metrics, moved))
    return made


def test_every_preset_trains(single: Ranks, tmp_path: Path) -> None:
    specs = {path.stem: stages(load(path), tmp_path / path.stem) for path in CONFIGS}
    # ZeRO-3 changes torch for the whole process, so it comes last.
    ordered = sorted((spec for pair in specs.values() for spec in pair), key=lambda spec: spec.optimization.zero_stage)
    assert len(ordered) == 2 * len(CONFIGS) >= 10
    (made,) = single(_step, ordered)
    for optimization, metrics, moved in made:
        assert torch.tensor(list(metrics.values())).isfinite().all()
        # Adam's first step is the learning rate, Adafactor's is so on the average of a tensor; bfloat16 weights would round the
        # smallest away.
        times = 1.05 if optimization.optimizer == "adamw" else 20
        assert 0.95 * optimization.learning_rate <= moved <= times * optimization.learning_rate

"""A learning rate that bfloat16 swallows is told from one that it shows, by the weights themselves."""

from __future__ import annotations

import pytest
import torch

from cpo_ray.config import Optimization
from cpo_ray.training.engine.optimizers import check_learning_rate
from cpo_ray.training.health import TrainingHealthError


def layer() -> torch.nn.Linear:
    module = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.normal_(module.weight, std=0.03, generator=torch.Generator().manual_seed(0))
    return module.bfloat16()


def settings(learning_rate: float) -> Optimization:
    return Optimization(steps=64, learning_rate=learning_rate, parameters="full")


def test_a_rate_per_sample_is_refused_and_one_per_batch_is_not() -> None:
    with pytest.raises(TrainingHealthError, match=r"add up to 6\.4e-07, and bfloat16 shows so small a change in [01]\.\d% of"):
        check_learning_rate(layer(), 64, settings(1e-8))
    check_learning_rate(layer(), 64, settings(1.28e-6))


def test_a_lora_passes_since_half_of_it_starts_at_zero() -> None:
    half = layer()
    module = torch.nn.Sequential(layer(), half)
    torch.nn.init.zeros_(half.weight)
    check_learning_rate(module, 64, settings(1e-8))
    half.requires_grad_(False)
    with pytest.raises(TrainingHealthError):
        check_learning_rate(module, 64, settings(1e-8))

"""A family that somebody else has written is reached by its import path, and used for everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_training import conditioning, write_base

from cpo_ray.config import ConfigError, Lora, Model, load
from cpo_ray.config.registry import FAMILIES
from cpo_ray.models import family

OUTSIDE = "support.outside.family:FAMILY"


def test_an_outside_family_loads_predicts_and_exports(tmp_path: Path) -> None:
    known = write_base(tmp_path / "base")
    outside = known.model_copy(update={"family": OUTSIDE})
    assert family(outside).name == "subdued"
    x_t, time = torch.randn(2, 4, 8, 8), torch.tensor([1, 500])
    told = conditioning(known, 2)
    plain = family(known).predict(family(known).load_denoiser(known), x_t, time, told)
    denoiser = family(outside).load_denoiser(outside)
    torch.testing.assert_close(family(outside).predict(denoiser, x_t, time, told), 0.9 * plain)
    for name in family(outside).add_lora(denoiser, Lora(rank=2, alpha=2), seed=0):
        torch.nn.init.normal_(denoiser.get_parameter(name), std=0.1)
    family(outside).save_adapter(denoiser, None, tmp_path / "adapter")
    trained = family(outside).predict(denoiser, x_t, time, told)
    reloaded = family(outside).load_denoiser(outside, tmp_path / "adapter")
    torch.testing.assert_close(family(outside).predict(reloaded, x_t, time, told), trained, rtol=1e-4, atol=1e-5)


def test_a_family_that_is_not_there_is_said_to_be_none() -> None:
    toy = Path(__file__).parents[2] / "jobs" / "configs" / "toy.toml"
    with pytest.raises(ConfigError, match=r"'sdxx': choose one of sdxl, flux, or give your own as module:name"):
        load(toy, ["model.family=sdxx"])
    assert load(toy, [f"model.family={OUTSIDE}"]).model.family == OUTSIDE
    for name in FAMILIES.names:
        assert family(Model(family=name, base="x")).name == name

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from cpo_ray.core.diffusion import DiffusionProcess, DiscreteProcess, FlowProcess

HAND = torch.tensor([0.64, 0.36])  # square roots .8 and .6, the other way round for the noise


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers).unsqueeze(1)


def latents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (5, 4, 8, 8)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_discrete_by_hand() -> None:
    process = DiscreteProcess(HAND, "v_prediction")
    x0, noise, t = column(10.0, 10.0), column(5.0, 5.0), torch.tensor([0, 1])
    torch.testing.assert_close(process.add_noise(x0, noise, t), column(11.0, 10.0))  # 8 + 3, 6 + 4
    torch.testing.assert_close(process.target(x0, noise, t), column(-2.0, -5.0))  # 4 - 6, 3 - 8
    assert torch.equal(DiscreteProcess(HAND, "epsilon").target(x0, noise, t), noise)


def test_flow_by_hand() -> None:
    process = FlowProcess()
    x0, noise, t = column(10.0, 10.0), column(2.0, 2.0), torch.tensor([0.25, 0.5])
    torch.testing.assert_close(process.add_noise(x0, noise, t), column(8.0, 6.0))
    torch.testing.assert_close(process.target(x0, noise, t), column(-8.0, -8.0))
    torch.testing.assert_close(process.predict_x0(column(8.0, 6.0), column(-8.0, -8.0), t), x0)


def test_discrete_timesteps_are_whole_and_even() -> None:
    process = DiscreteProcess(torch.linspace(0.999, 0.01, 1000), "epsilon")
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
    t = process.timestep(torch.tensor([0.0, 0.00099, 0.0011, 0.5, 0.9995, largest]))
    assert t.dtype == torch.int64
    assert t.tolist() == [0, 0, 1, 500, 999, 999]
    counts = torch.bincount(process.timestep((torch.arange(10_000) + 0.5) / 10_000))
    assert counts.tolist() == [10] * 1000


def test_a_product_that_rounds_up_stays_inside_the_schedule() -> None:
    process = DiscreteProcess(torch.full((3,), 0.5), "epsilon")
    u = torch.tensor([0.9998], dtype=torch.float16)  # rounds to 1.0 in half precision
    assert process.timestep(u).tolist() == [2]


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_discrete_agrees_with_diffusers(zero_terminal_snr: bool) -> None:
    scheduler: Any = DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_terminal_snr)
    process = DiscreteProcess(scheduler.alphas_cumprod, "v_prediction")
    x0, noise = latents()
    t = torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(process.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t))
    torch.testing.assert_close(process.target(x0, noise, t), scheduler.get_velocity(x0, noise, t))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_agrees_with_diffusers(shift: float) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = FlowProcess("uniform", shift)
    # The scheduler's k-th noise level is k / 1000, shifted.
    levels = process.timestep(torch.arange(1000, 0, -1) / 1000)
    torch.testing.assert_close(levels, scheduler.sigmas, atol=2e-6, rtol=0)
    x0, noise = latents()
    t = scheduler.sigmas[[1, 100, 500, 900, 999]]
    noisy = scheduler.scale_noise(x0, 1000 * t, noise)
    torch.testing.assert_close(process.add_noise(x0, noise, t), noisy)


@pytest.mark.parametrize(
    "process",
    [
        DiscreteProcess(torch.linspace(0.99, 0.1, 10), "epsilon"),
        DiscreteProcess(torch.linspace(0.99, 0.0, 10), "v_prediction"),
        FlowProcess("logit_normal", 3.0),
    ],
    ids=["epsilon", "v_with_zero_terminal_snr", "flow"],
)
def test_the_target_gives_back_the_clean_latent(process: DiffusionProcess) -> None:
    x0, noise = latents()
    t = process.timestep(torch.tensor([0.0, 0.3, 0.6, 0.9, 0.99999]))
    x_t = process.add_noise(x0, noise, t)
    recovered = process.predict_x0(x_t, process.target(x0, noise, t), t)
    torch.testing.assert_close(recovered, x0, atol=1e-5, rtol=1e-5)


def test_the_last_step_of_a_zero_snr_schedule_is_noise_alone() -> None:
    process = DiscreteProcess(torch.tensor([0.5, 0.0]), "v_prediction")
    x0, noise, t = column(3.0), column(7.0), torch.tensor([1])
    assert torch.equal(process.add_noise(x0, noise, t), noise)
    assert torch.equal(process.target(x0, noise, t), -x0)


def test_flow_timesteps_follow_their_distribution() -> None:
    u = torch.tensor([0.0, 0.1586553, 0.5, 0.8413447, 1 - 2**-24])
    t = FlowProcess("logit_normal").timestep(u)
    sigmoid_of_one = 1 / (1 + math.exp(-1))  # the quantiles of -1, 0 and 1 standard deviations
    torch.testing.assert_close(t[1:4], torch.tensor([1 - sigmoid_of_one, 0.5, sigmoid_of_one]))
    for process in (FlowProcess("logit_normal", 3.0), FlowProcess("uniform", 0.5)):
        ends = process.timestep(u)
        assert bool(((ends > 0) & (ends < 1)).all())
        assert bool((ends.diff() > 0).all())
    torch.testing.assert_close(FlowProcess("uniform", 3.0).timestep(torch.tensor([0.5])), torch.tensor([0.75]))


def test_half_precision_latents_are_noised_in_float32() -> None:
    x0, noise = (latent.to(torch.bfloat16) for latent in latents())
    for process in (DiscreteProcess(HAND, "epsilon"), FlowProcess()):
        t = process.timestep(torch.linspace(0.1, 0.9, 5))
        expected = process.add_noise(x0.float(), noise.float(), t)
        assert torch.equal(process.add_noise(x0, noise, t), expected)


@pytest.mark.parametrize("alphas", [torch.tensor([]), torch.ones(2, 2), torch.tensor([1.1]), torch.tensor([math.nan])])
def test_a_schedule_that_is_none_is_refused(alphas: Tensor) -> None:
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        DiscreteProcess(alphas, "epsilon")


def test_impossible_processes_are_refused() -> None:
    unknown: Any = "sample"
    with pytest.raises(ValueError, match="'sample'"):
        DiscreteProcess(HAND, unknown)
    with pytest.raises(ValueError, match="use 'v_prediction'"):
        DiscreteProcess(torch.tensor([0.5, 0.0]), "epsilon")
    with pytest.raises(ValueError, match="'sample'"):
        FlowProcess(unknown)
    with pytest.raises(ValueError, match="shift is 0"):
        FlowProcess(shift=0)

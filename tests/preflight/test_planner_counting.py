"""What is counted on the meta device, against sums done by hand and against what torch's own allocator sees of a real call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_training import conditioning, write_base
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from cpo_ray.config import Lora, Model
from cpo_ray.config.registry import FAMILIES
from cpo_ray.models import family
from cpo_ray.preflight.counting import OnMeta, count, count_forward, count_step


def test_a_call_is_charged_for_what_lives_at_the_same_time() -> None:
    def call() -> Tensor:
        first = torch.empty(100, device="meta")  # 400 bytes
        first.view(10, 10).t().add_(1)  # views and changes in place are free
        second = first * 2  # 800
        del first  # 400
        return second + 1  # 800

    assert count(call).peak == 800


def test_weights_are_no_charge_and_activations_are_kept_for_the_backward_pass() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False))
        inputs = torch.empty(8, 64)
    # Forward: 8 x 32 twice are alive when the second is made; then 8 x 32 and 8 x 16.
    forward = count_forward(lambda: model(inputs), [model])
    assert forward.peak == 4 * 2 * 8 * 32
    assert forward.flop == 2 * (8 * 64 * 32 + 8 * 32 * 16)
    step = count_step(lambda: model(inputs).sum(), model)
    # Backward: gradients of both weights and of the first one's output.
    assert step.flop == forward.flop + 2 * (8 * 64 * 32 + 2 * 8 * 32 * 16)
    # At last the gradient of the first layer's output and that of its weight, beside the loss and the loss's own.
    assert step.peak == 4 * (8 * 32 + 32 * 64 + 2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_is_one_kernel_that_keeps_no_matrix_of_all_pairs() -> None:
    with torch.device("meta"):
        query = torch.empty(1, 2, 512, 16)
    original = functional.scaled_dot_product_attention
    counted = count(lambda: functional.scaled_dot_product_attention(query, query, query))
    assert functional.scaled_dot_product_attention is original
    assert counted.flop == 4 * 2 * 512 * 512 * 16
    assert 4 * query.numel() <= counted.peak < 2 * 4 * query.numel()


def allocated(call: Callable[[], Any]) -> int:
    """The peak of what torch's allocator gave out in a call, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.fixture(scope="module", params=FAMILIES.names)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return write_base(tmp_path_factory.mktemp("planned"), request.param)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("parameters", ["lora", "full"])
def test_a_step_takes_what_torch_allocates(base: Model, parameters: str, checkpointing: bool) -> None:
    found, batch = family(base), 6  # beside which checkpointing's copies of a generator's state are small
    x_t, timestep, text = torch.zeros(batch, 4, 16, 16), torch.zeros(batch), conditioning(base, batch)
    text["prompt_embeds"] = torch.ones(batch, 5, text["prompt_embeds"].shape[-1])

    def prepared(denoiser: Any) -> Any:
        if parameters == "lora":
            found.add_lora(denoiser, Lora(rank=4), 0)
        else:
            denoiser.requires_grad_(True)
        if checkpointing:
            found.checkpoint_gradients(denoiser)
        return denoiser.train()

    meta, real = prepared(found.skeleton(base, Path(base.base)).denoiser), prepared(found.load_denoiser(base))

    def loss(denoiser: nn.Module) -> Tensor:
        return found.predict(denoiser, x_t, timestep, text).float().square().mean()

    def step() -> None:
        loss(real).backward()

    for values in filter(lambda values: values.requires_grad, real.parameters()):
        values.register_post_accumulate_grad_hook(lambda values: setattr(values, "grad", None))
    step()  # what is made once and kept is not part of a step
    counted = count_step(lambda: loss(OnMeta(meta)), meta)
    assert counted.peak == pytest.approx(allocated(step), rel=0.05)


def test_forwards_of_every_model_take_what_torch_allocates(base: Model) -> None:
    found, skeleton = family(base), family(base).skeleton(base, Path(base.base))
    pipeline = found.load_pipeline(base)
    x_t, timestep, text = torch.zeros(2, 4, 16, 16), torch.zeros(2), conditioning(base, 2)
    text["prompt_embeds"] = torch.ones(2, 5, text["prompt_embeds"].shape[-1])
    denoiser = found.load_denoiser(base)
    pictures = torch.zeros(2, 3, 32, 32)
    calls: list[tuple[Callable[[Any], Any], Any, Any]] = [
        (lambda model: found.predict(model, x_t, timestep, text), denoiser, skeleton.denoiser),
        (lambda model: model(pictures.to(_device(model))), pipeline.vae.encoder, skeleton.vae.encoder),
    ]
    text_encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder")]
    calls += [
        (lambda model: model(torch.zeros(2, 8, dtype=torch.long, device=_device(model))), real, meta)
        for real, meta in zip(text_encoders, skeleton.text_encoders, strict=True)
    ]
    for call, real, meta in calls:
        on_meta = OnMeta(meta) if meta is skeleton.denoiser else meta
        with torch.no_grad():
            call(real)
            seen = allocated(partial(call, real))
        counted = count_forward(partial(call, on_meta), [meta])
        # The CPU's convolutions take a buffer of their own.
        assert counted.peak == pytest.approx(seen, rel=0.15 if real is pipeline.vae.encoder else 0.05), type(real).__name__


def _device(model: nn.Module) -> torch.device:
    return next(iter(model.parameters())).device

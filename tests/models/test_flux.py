"""What FLUX has of its own: patches, positions, times, texts of any length, guidance. Against diffusers and by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from cpo_ray.config import Flow, Model
from cpo_ray.core.picture_size import PictureSize
from cpo_ray.evaluation.generate import GenerationJob, generate_batch
from cpo_ray.models.flux import Flux
from cpo_ray.models.flux.family import image_ids, pack, unpack
from cpo_ray.models.tiny import Widths

PROMPTS = ["red circle on green wall", "sea"]
SIZES = [PictureSize((64, 64), (0, 0), (64, 64))] * 2
CPU = torch.device("cpu")
SMALL = Flux().tiny(Widths())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    Flux().random_pipeline(SMALL, PROMPTS).save_pretrained(folder)
    return Model(family="flux", base=str(folder), resolution=64)


def with_flow(model: Model, **flow: Any) -> Model:
    return model.model_copy(update={"flow": Flow(**flow)})


def test_a_patch_is_a_token_with_its_four_pixels_channel_by_channel() -> None:
    latent = torch.arange(2 * 2 * 4).reshape(1, 2, 2, 4)  # two channels, two rows, four columns
    tokens = pack(latent)
    assert tokens.tolist() == [[[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]]
    assert torch.equal(unpack(tokens, 2, 4), latent)
    random = torch.randn(3, 4, 6, 8)
    assert torch.equal(pack(random), FluxPipeline._pack_latents(random, 3, 4, 6, 8))


def test_positions_are_rows_and_columns() -> None:
    assert image_ids(2, 3, CPU).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert torch.equal(image_ids(3, 4, CPU), FluxPipeline._prepare_latent_image_ids(1, 3, 4, CPU, torch.float32))


@pytest.mark.parametrize("padded", [False, True])
def test_our_forward_is_the_pipelines_own(model: Model, padded: bool) -> None:
    """What the pipeline's transformer gives while it samples, our forward gives for the same latent, time, text and guidance."""
    model = with_flow(model, guidance=2.5, padded_text=padded, text_tokens=16)
    flux, calls = Flux(), []
    pipeline = flux.load_pipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.register_forward_hook(lambda _, a, k, out: calls.append((k, out[0])), with_kwargs=True)
    pipeline(PROMPTS, num_inference_steps=2, guidance_scale=2.5, height=64, width=64, output_type="latent")
    encoders = flux.load_encoders(model, CPU)
    conditioning = encoders.encode_prompts(PROMPTS) | encoders.micro_conditioning(SIZES)
    assert conditioning["prompt_embeds"].shape[1] == (16 if padded else 6)  # five words and the end
    denoiser = flux.load_denoiser(model)
    for keywords, output in calls:
        x_t = unpack(keywords["hidden_states"], 16, 16)
        with torch.no_grad():
            ours = flux.predict(denoiser, x_t, keywords["timestep"], conditioning)
        torch.testing.assert_close(ours, unpack(output, 16, 16), rtol=1e-4, atol=1e-5)
    assert 0 < calls[1][0]["timestep"][0] < calls[0][0]["timestep"][0] <= 1, "times are those of a flow, not steps of a thousand"


def test_padded_texts_are_those_of_diffusers(model: Model) -> None:
    flux, plain = Flux(), FluxPipeline.from_pretrained(model.base)
    ours = flux.load_encoders(with_flow(model, padded_text=True, text_tokens=16), CPU).encode_prompts(PROMPTS)
    embeds, pooled, _ = plain.encode_prompt(PROMPTS, max_sequence_length=16)
    torch.testing.assert_close(ours, {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})


def test_an_unpadded_text_is_its_own_tokens_whatever_the_batch(model: Model) -> None:
    """A short text encoded beside a long one, and predicted with more padding still, is the short text alone."""
    flux, encoders = Flux(), Flux().load_encoders(model, CPU)
    together, alone = encoders.encode_prompts(PROMPTS), encoders.encode_prompts(PROMPTS[1:])
    assert alone["prompt_embeds"].shape[1] == 2  # sea, end
    torch.testing.assert_close(together["prompt_embeds"][1, :2], alone["prompt_embeds"][0])
    assert not together["prompt_embeds"][1, 2:].any()
    denoiser, generator = flux.load_denoiser(model), torch.Generator().manual_seed(0)
    x_t, timestep = torch.randn(1, 8, 16, 16, generator=generator), torch.tensor([0.4])

    def velocity(padding: int) -> Tensor:
        text = torch.nn.functional.pad(alone["prompt_embeds"], (0, 0, 0, padding))
        conditioning = alone | encoders.micro_conditioning(SIZES[:1]) | {"prompt_embeds": text}
        with torch.no_grad():
            return flux.predict(denoiser, x_t, timestep, conditioning)

    torch.testing.assert_close(velocity(9), velocity(0), rtol=1e-4, atol=1e-5)


def test_guidance_is_one_stored_value_and_none_where_the_base_takes_none(model: Model, tmp_path: Path) -> None:
    flux = Flux()
    told = flux.load_encoders(with_flow(model, guidance=3.5), CPU).micro_conditioning(SIZES)
    assert told["guidance"].tolist() == [3.5, 3.5] and told["guidance"].dtype == torch.float32
    torch.manual_seed(0)
    plain = replace(SMALL, denoiser={**SMALL.denoiser, "guidance_embeds": False})
    flux.random_pipeline(plain, PROMPTS).save_pretrained(tmp_path)
    schnell = model.model_copy(update={"base": str(tmp_path)})
    encoders = flux.load_encoders(schnell, CPU)
    assert encoders.micro_conditioning(SIZES) == {}
    x_t = torch.zeros(2, 8, 16, 16)
    velocity = flux.predict(flux.load_denoiser(schnell), x_t, torch.tensor([0.1, 0.9]), encoders.encode_prompts(PROMPTS))
    assert velocity.shape == x_t.shape


def test_times_are_shifted_as_far_as_the_bases_own_or_as_told(model: Model) -> None:
    """At 64 pixels there are 64 tokens; the pipeline's line from 0.5 at 256 tokens to 1.15 at 4096 is at 0.4675 there."""
    process = Flux().load_process(model)
    assert process.timestep_distribution == "logit_normal"
    assert process.shift == pytest.approx(math.exp(0.5 + (64 - 256) * 0.65 / 3840))
    scheduler = FluxPipeline.from_pretrained(model.base).scheduler
    scheduler.set_timesteps(sigmas=[0.75, 0.5, 0.25], mu=math.log(process.shift))
    even = Flux().load_process(with_flow(model, timesteps="uniform"))
    torch.testing.assert_close(even.timestep(torch.tensor([0.75, 0.5, 0.25])), scheduler.sigmas[:3])
    at_1024 = Flux().load_process(model.model_copy(update={"resolution": 512}))  # the tiny VAE's factor is 4, FLUX's is 8
    assert at_1024.shift == pytest.approx(math.exp(1.15))
    papers = Flux().load_process(with_flow(model, timesteps="uniform", shift=1.0))
    torch.testing.assert_close(papers.timestep(torch.tensor([0.25, 0.5])), torch.tensor([0.25, 0.5]))


def test_a_base_with_a_fixed_shift_keeps_it(tmp_path: Path) -> None:
    fixed = replace(SMALL, scheduler={**SMALL.scheduler, "use_dynamic_shifting": False})
    Flux().random_pipeline(fixed, PROMPTS).save_pretrained(tmp_path)
    assert Flux().load_process(Model(family="flux", base=str(tmp_path), resolution=64)).shift == 3.0


def test_noise_target_and_prediction_by_hand(model: Model) -> None:
    """x_t = (1 - t) x0 + t ε = 0.75 · 4 + 0.25 · 8 = 5, the velocity is 8 - 4 = 4, and x0 = x_t - t v = 5 - 0.25 · 4 = 4."""
    process = Flux().load_process(model)
    x0, noise, t = torch.full((1, 1), 4.0), torch.full((1, 1), 8.0), torch.tensor([0.25])
    assert process.add_noise(x0, noise, t).item() == 5
    assert process.target(x0, noise, t).item() == 4
    assert process.predict_x0(torch.tensor([[5.0]]), torch.tensor([[4.0]]), t).item() == 4


def test_a_negative_prompt_guides_by_a_second_pass(model: Model) -> None:
    pipeline, passes = Flux().load_pipeline(model), []
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.register_forward_hook(lambda _, a, k, out: passes.append(float(k["guidance"][0])), with_kwargs=True)

    def draw(negative: str, scale: float) -> Any:
        job = GenerationJob(model, None, tuple(PROMPTS[:1]), (3,), (negative,), inference_steps=1, guidance_scale=scale, batch=1)
        return generate_batch(pipeline, job, (0,))[0].astype(int)

    plain, refused = draw("", 4.0), draw("sea", 4.0)
    assert passes == [4.0, 1.0, 1.0]  # one pass at the embedded scale, then two without it
    assert abs(plain - refused).max() > 0

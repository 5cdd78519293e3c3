"""What every family promises, on pipelines of the real architectures, saved and loaded by diffusers itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from cpo_ray.config import Lora, Model
from cpo_ray.config.registry import FAMILIES
from cpo_ray.core.picture_size import PictureSize
from cpo_ray.models import family
from cpo_ray.models.base import Conditioning
from cpo_ray.models.sdxl import SDXL
from cpo_ray.models.tiny import Widths, clip_tokenizer, t5_tokenizer

CORPUS = ["red circle on green wall", "blue square over sea", "clear edges, muddy palette"]
PROMPTS = ["red circle on green wall", "blue square"]
SIZE = PictureSize(original=(512, 768), crop=(0, 64), target=(64, 64))


@pytest.fixture(scope="module", params=FAMILIES.names)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sdxl_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One that predicts the noise."""
    told = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}  # it cannot start from pure noise
    return small("sdxl", tmp_path_factory.mktemp("sdxl"), scheduler=told)


def small(name: str, folder: Path, **changes: dict[str, Any]) -> Model:
    """A folder that diffusers wrote, of narrow layers; `changes` of its configurations."""
    model = Model(family=name, base=str(folder), resolution=64)
    configurations = family(model).tiny(Widths())
    parts: dict[str, Any] = {part: {**getattr(configurations, part), **told} for part, told in changes.items()}
    changed = replace(configurations, **parts)
    torch.manual_seed(0)
    family(model).random_pipeline(changed, CORPUS).save_pretrained(folder)
    return model


def inputs(model: Model, prompts: list[str] = PROMPTS) -> tuple[Tensor, Tensor, Conditioning]:
    """x_t, timesteps and the conditioning of two samples."""
    generator = torch.Generator().manual_seed(1)
    timestep = family(model).load_process(model).timestep(torch.tensor([0.003, 0.9], dtype=torch.float64))
    encoders = family(model).load_encoders(model, torch.device("cpu"))
    conditioning = encoders.encode_prompts(prompts) | encoders.micro_conditioning([SIZE] * len(prompts))
    return torch.randn(2, 8, 16, 16, generator=generator), timestep, conditioning


def changed_lora(model: Model, lora: Lora) -> tuple[nn.Module, list[str]]:
    """A denoiser with an adapter that does something, and the adapter's parameters."""
    denoiser = family(model).load_denoiser(model)
    names = family(model).add_lora(denoiser, lora, seed=0)
    generator = torch.Generator().manual_seed(2)
    for name in names:
        parameter = denoiser.get_parameter(name).data
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return denoiser, names


def test_our_forward_is_the_pipelines_own(sdxl_model: Model) -> None:
    """What the pipeline hands its UNet while it samples is our conditioning for the same prompt and sizes."""
    sdxl = SDXL()
    pipeline = sdxl.load_pipeline(sdxl_model)
    seen: dict[str, Tensor] = {}

    def remember(_: object, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.update(x=arguments[0], t=arguments[1], states=keywords["encoder_hidden_states"], **keywords["added_cond_kwargs"])

    pipeline.unet.register_forward_pre_hook(remember, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("red circle on green wall", num_inference_steps=1, guidance_scale=1.0, original_size=SIZE.original,
             crops_coords_top_left=SIZE.crop, target_size=SIZE.target, output_type="latent")  # fmt: skip
    encoders = sdxl.load_encoders(sdxl_model, torch.device("cpu"))
    conditioning = encoders.encode_prompts(["red circle on green wall"]) | encoders.micro_conditioning([SIZE])
    assert torch.equal(conditioning["time_ids"], torch.tensor([[512.0, 768, 0, 64, 64, 64]]))
    assert torch.equal(conditioning["time_ids"], seen["time_ids"].float())
    torch.testing.assert_close(conditioning["prompt_embeds"], seen["states"])
    torch.testing.assert_close(conditioning["pooled_prompt_embeds"], seen["text_embeds"])


def test_latents_are_in_the_space_that_the_pipeline_decodes(model: Model) -> None:
    encoders, vae = family(model).load_encoders(model, torch.device("cpu")), family(model).load_pipeline(model).vae
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    latent = encoders.encode_pictures(picture)
    mean = vae.encode(picture).latent_dist.mean
    assert latent.shape == (1, 8, 16, 16) and not latent.requires_grad
    by_hand = {"sdxl": mean * 0.18215, "flux": (mean - 0.1159) * 0.3611}
    torch.testing.assert_close(latent, by_hand[model.family])
    latents = family(model).latents
    torch.testing.assert_close(latents.decode(vae, latent), vae.decode(mean).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zeros", [True, False])
def test_null_condition_follows_the_base(tmp_path: Path, zeros: bool) -> None:
    """SDXL's own config replaces the empty prompt by zeros; then ∅ must be zeros in training too."""
    model = small("sdxl", tmp_path, pipeline={"force_zeros_for_empty_prompt": zeros})
    encoded = SDXL().load_encoders(model, torch.device("cpu")).encode_prompts(["", "red circle"])
    for tensor in encoded.values():
        assert (tensor[0].abs().sum() == 0) == zeros
        assert tensor[1].abs().sum() > 0


def test_a_denoiser_is_frozen_and_predicts_in_the_latents_shape(model: Model) -> None:
    denoiser = family(model).load_denoiser(model)
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())
    x_t, timestep, conditioning = inputs(model)
    output = family(model).predict(denoiser, x_t, timestep, conditioning)
    assert output.shape == x_t.shape
    for one in range(2):  # nothing leaks from one sample to the other
        alone = family(model).predict(
            denoiser, x_t[one : one + 1], timestep[one : one + 1], {k: v[one : one + 1] for k, v in conditioning.items()}
        )
        torch.testing.assert_close(alone, output[one : one + 1], rtol=1e-4, atol=1e-5)


def test_adapter_round_trip_keeps_alpha(model: Model, tmp_path: Path) -> None:
    found, (x_t, timestep, conditioning) = family(model), inputs(model)
    denoiser, names = changed_lora(model, Lora(rank=4, alpha=12.0))
    assert names and all(".lora_" in name for name in names)
    assert {n for n, p in denoiser.named_parameters() if p.requires_grad} == set(names)

    def output(changed: Any) -> Tensor:
        return found.predict(changed, x_t, timestep, conditioning)

    with torch.no_grad():
        trained, base = output(denoiser), output(found.load_denoiser(model))
        found.save_adapter(denoiser, None, tmp_path)
        merged, pipeline = found.load_denoiser(model, adapter=tmp_path), found.load_pipeline(model, adapter=tmp_path)
        assert (trained - base).abs().max() > 0.05
        torch.testing.assert_close(output(merged), trained, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output(pipeline.components[found.denoiser]), trained, rtol=1e-4, atol=1e-5)
    assert not [n for n, p in merged.named_parameters() if "lora" in n or p.requires_grad]


def test_a_whole_denoiser_takes_the_bases_place_wherever_an_adapter_could(model: Model, tmp_path: Path) -> None:
    found, fresh = family(model), family(model).load_denoiser(model)
    state = {name: values + 0.01 for name, values in fresh.state_dict().items()}
    found.save_denoiser(model, state, tmp_path)
    for read in (found.load_denoiser(model, tmp_path), found.load_pipeline(model, tmp_path).components[found.denoiser]):
        assert all(torch.equal(values, state[name]) for name, values in read.state_dict().items())


def test_lora_starts_from_the_seed_alone(model: Model) -> None:
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        denoiser = family(model).load_denoiser(model)
        names = family(model).add_lora(denoiser, Lora(rank=2, alpha=2), seed=7)
        states.append([p.clone() for n, p in denoiser.named_parameters() if n in names])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_unknown_lora_targets_are_one_sentence(model: Model) -> None:
    with pytest.raises(ValueError, match=r"no layer of the denoiser is named like lora.targets = \['to_z'\]"):
        family(model).add_lora(family(model).load_denoiser(model), Lora(targets=("to_z",)), seed=0)


def test_a_layer_that_cannot_be_exported_is_refused_before_training(tmp_path: Path) -> None:
    model = small("flux", tmp_path)
    with pytest.raises(ValueError, match="'x_embedder', which has no name in the kohya and ComfyUI formats"):
        family(model).add_lora(family(model).load_denoiser(model), Lora(targets=("x_embedder",)), seed=0)


def measured(sizes: list[int], saved: Tensor) -> Tensor:
    sizes.append(saved.numel())
    return saved


def test_recomputed_activations_give_the_same_gradient_from_less_memory(model: Model) -> None:
    gradients, kept = [], []
    for recompute in (False, True):
        denoiser, names = changed_lora(model, Lora(rank=2, alpha=2))
        if recompute:
            family(model).checkpoint_gradients(denoiser)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(measured, sizes), lambda t: t):
            loss = family(model).predict(denoiser, *inputs(model)).square().mean()
        loss.backward()
        gradients.append([denoiser.get_parameter(name).grad for name in names])
        kept.append(sum(sizes))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    assert kept[1] < 0.7 * kept[0]


def test_schedule_is_the_bases_own(sdxl_model: Model) -> None:
    process = SDXL().load_process(sdxl_model)
    assert process.prediction_type == "epsilon"
    torch.testing.assert_close(
        process.alphas_cumprod, StableDiffusionXLPipeline.from_pretrained(sdxl_model.base).scheduler.alphas_cumprod
    )


def test_tokenizer_has_whole_words_and_can_read_anything() -> None:
    tokenizer = clip_tokenizer(CORPUS, max_length=16)
    assert tokenizer.convert_ids_to_tokens(tokenizer("red circle, clear").input_ids)[1:-1] == [
        "red</w>",
        "circle</w>",
        ",</w>",
        "clear</w>",
    ]
    unknown = tokenizer("zebra").input_ids[1:-1]
    assert len(unknown) > 1 and tokenizer.eos_token_id not in unknown


def test_t5_tokenizer_has_whole_words_and_can_read_anything() -> None:
    tokenizer = t5_tokenizer(CORPUS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("red circle").input_ids) == ["▁red", "▁circle", "</s>"]
    unknown = tokenizer("zebra").input_ids
    assert len(unknown) > 3 and tokenizer.unk_token_id not in unknown

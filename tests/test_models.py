"""The SDXL family on a pipeline of the real architecture, saved and loaded by diffusers itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from cpo_ray.config import Lora, Model
from cpo_ray.models import family
from cpo_ray.models.base import PictureSize
from cpo_ray.models.sdxl import SDXL
from cpo_ray.models.tiny import clip_tokenizer, tiny_sdxl

CORPUS = ["red circle on green wall", "blue square over sea", "clear edges, muddy palette"]
SIZE = PictureSize(original=(512, 768), crop=(0, 64), target=(64, 64))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A folder that diffusers wrote: an ε-predicting SDXL with narrow layers."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tiny_sdxl(CORPUS, channels=(32, 64), vae_channels=(8, 16, 16), prediction_type="epsilon").save_pretrained(folder)
    return Model(family="sdxl", base=str(folder), resolution=64)


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 8, 16, 16, generator=generator), torch.tensor([3, 900][:batch])


def test_our_forward_is_the_pipelines_own(model: Model) -> None:
    """What the pipeline hands its UNet while it samples is our conditioning for the same prompt and sizes."""
    sdxl = SDXL()
    pipeline = sdxl.load_pipeline(model)
    seen: dict[str, torch.Tensor] = {}

    def remember(_: object, arguments: tuple, keywords: dict) -> None:
        seen.update(x=arguments[0], t=arguments[1], states=keywords["encoder_hidden_states"], **keywords["added_cond_kwargs"])

    pipeline.unet.register_forward_pre_hook(remember, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("red circle on green wall", num_inference_steps=1, guidance_scale=1.0, original_size=SIZE.original,
             crops_coords_top_left=SIZE.crop, target_size=SIZE.target, output_type="latent")  # fmt: skip
    encoders = sdxl.load_encoders(model, torch.device("cpu"))
    conditioning = encoders.encode_prompts(["red circle on green wall"]) | encoders.micro_conditioning([SIZE])
    assert torch.equal(conditioning["time_ids"], torch.tensor([[512.0, 768, 0, 64, 64, 64]]))
    assert torch.equal(conditioning["time_ids"], seen["time_ids"].float())
    torch.testing.assert_close(conditioning["prompt_embeds"], seen["states"])
    torch.testing.assert_close(conditioning["pooled_prompt_embeds"], seen["text_embeds"])


def test_latents_are_in_the_scaled_space_of_the_pipeline(model: Model) -> None:
    sdxl = SDXL()
    encoders = sdxl.load_encoders(model, torch.device("cpu"))
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    latent = encoders.encode_pictures(picture)
    mean = sdxl.load_pipeline(model).vae.encode(picture).latent_dist.mean
    assert latent.shape == (1, 8, 16, 16)
    torch.testing.assert_close(latent, mean * 0.18215)


@pytest.mark.parametrize("zeros", [True, False])
def test_null_condition_follows_the_base(tmp_path: Path, zeros: bool) -> None:
    """SDXL's own config replaces the empty prompt by zeros; then ∅ must be zeros in training too."""
    pipeline = tiny_sdxl(CORPUS, channels=(32, 64))
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    pipeline.save_pretrained(tmp_path)
    model = Model(family="sdxl", base=str(tmp_path), resolution=64)
    encoded = SDXL().load_encoders(model, torch.device("cpu")).encode_prompts(["", "red circle"])
    for tensor in encoded.values():
        assert (tensor[0].abs().sum() == 0) == zeros
        assert tensor[1].abs().sum() > 0


def test_adapter_round_trip_keeps_alpha(model: Model, tmp_path: Path) -> None:
    sdxl = family(model)
    denoiser = sdxl.load_denoiser(model)
    names = sdxl.add_lora(denoiser, Lora(rank=4, alpha=12.0), seed=0)
    assert names and all(".lora_" in name for name in names)
    assert {n for n, p in denoiser.named_parameters() if p.requires_grad} == set(names)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in denoiser.named_parameters():
        if name in names:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    encoders = sdxl.load_encoders(model, torch.device("cpu"))
    conditioning = encoders.encode_prompts(["red circle", "blue square"]) | encoders.micro_conditioning([SIZE, SIZE])
    with torch.no_grad():
        x, t = inputs()
        trained = sdxl.predict(denoiser, x, t, conditioning)
        sdxl.save_adapter(denoiser, None, tmp_path)
        base = sdxl.predict(sdxl.load_denoiser(model), x, t, conditioning)
        merged = sdxl.load_denoiser(model, adapter=tmp_path)
        piped = sdxl.load_pipeline(model, adapter=tmp_path).unet
        assert (trained - base).abs().max() > 0.05
        torch.testing.assert_close(sdxl.predict(merged, x, t, conditioning), trained, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sdxl.predict(piped, x, t, conditioning), trained, rtol=1e-4, atol=1e-5)
    assert not [n for n, p in merged.named_parameters() if "lora" in n or p.requires_grad]


def test_lora_starts_from_the_seed_alone(model: Model) -> None:
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        denoiser = SDXL().load_denoiser(model)
        names = SDXL().add_lora(denoiser, Lora(rank=2, alpha=2), seed=7)
        states.append([p.clone() for n, p in denoiser.named_parameters() if n in names])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_unknown_lora_target_is_one_sentence(model: Model) -> None:
    with pytest.raises(ValueError, match=r"no layer of the denoiser is named like lora.targets = \['to_z'\]"):
        SDXL().add_lora(SDXL().load_denoiser(model), Lora(targets=("to_z",)), seed=0)


def test_schedule_is_the_bases_own(model: Model) -> None:
    process = SDXL().load_process(model)
    assert process.prediction_type == "epsilon"
    torch.testing.assert_close(
        process.alphas_cumprod, StableDiffusionXLPipeline.from_pretrained(model.base).scheduler.alphas_cumprod
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

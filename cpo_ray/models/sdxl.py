"""SDXL: a UNet in noise or velocity space, two CLIP text encoders, pooled text and sizes in the time embedding."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from cpo_ray.config import ConfigError, Lora, Model
from cpo_ray.diffusion import DiscreteProcess
from cpo_ray.models.base import DTYPES, Conditioning, PictureSize, base_source

ADAPTER = "default"


class SDXLEncoders:
    """VAE (always float32: SDXL's overflows in float16) and both text encoders of an SDXL folder or hub id."""

    def __init__(self, model: Model, device: torch.device) -> None:
        source, dtype = base_source(model), DTYPES[model.dtype]
        self.device = device
        self.vae = AutoencoderKL.from_pretrained(source, subfolder="vae", revision=model.revision, dtype=torch.float32)
        self.vae = self.vae.to(device).eval().requires_grad_(False)
        self.text = StableDiffusionXLPipeline.from_pretrained(
            source, unet=None, vae=None, revision=model.revision, dtype=dtype, use_safetensors=True
        ).to(device)
        self.text.set_progress_bar_config(disable=True)
        self.zero_null = bool(self.text.config.force_zeros_for_empty_prompt)
        self.token_limit: int = self.text.tokenizer.model_max_length

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        latents = self.vae.encode(pictures.to(self.device, torch.float32)).latent_dist.mode()
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, _, pooled, _ = self.text.encode_prompt(list(prompts), device=self.device, do_classifier_free_guidance=False)
        if self.zero_null:
            empty = torch.tensor([not p for p in prompts], device=self.device)
            embeds, pooled = embeds.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def micro_conditioning(self, sizes: Sequence[PictureSize]) -> Conditioning:
        rows = [[*s.original, *s.crop, *s.target] for s in sizes]
        return {"time_ids": torch.tensor(rows, dtype=torch.float32, device=self.device)}

    def count_tokens(self, text: str) -> int:
        # Two encoders read the text; the longer tokenisation decides what fits.
        tokenizers = (self.text.tokenizer, self.text.tokenizer_2)
        return max(len(t(text, truncation=False, verbose=False).input_ids) for t in tokenizers)


class SDXL:
    """`Family` of Stable Diffusion XL and its fine-tunes."""

    name = "sdxl"

    def load_encoders(self, model: Model, device: torch.device) -> SDXLEncoders:
        return SDXLEncoders(model, device)

    def load_denoiser(self, model: Model, adapter: Path | None = None) -> UNet2DConditionModel:
        unet = UNet2DConditionModel.from_pretrained(
            base_source(model), subfolder="unet", revision=model.revision, dtype=DTYPES[model.dtype], use_safetensors=True
        )
        if adapter is not None:
            state, metadata = StableDiffusionXLPipeline.lora_state_dict(adapter, return_lora_metadata=True)[::2]
            unet.load_lora_adapter(state, prefix="unet", metadata=metadata)
            unet.fuse_lora()
            unet.unload_lora()
        return unet.eval().requires_grad_(False)

    def load_process(self, model: Model) -> DiscreteProcess:
        scheduler = DDPMScheduler.from_pretrained(base_source(model), subfolder="scheduler", revision=model.revision)
        return DiscreteProcess(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    def predict(self, denoiser: nn.Module, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning["pooled_prompt_embeds"], "time_ids": conditioning["time_ids"]}
        text = conditioning["prompt_embeds"].to(x_t.dtype)
        return denoiser(x_t, timestep, text, added_cond_kwargs=added, return_dict=False)[0]

    def add_lora(self, denoiser: nn.Module, lora: Lora, seed: int) -> list[str]:
        # The generator's state before and after is not ours: only the seed decides the initial weights.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights=True)
            mixin: Any = denoiser  # diffusers mixes peft's methods into its models
            try:
                mixin.add_adapter(config, adapter_name=ADAPTER)
            except ValueError as error:
                names = list(lora.targets)
                raise ConfigError(f"no layer of the denoiser is named like lora.targets = {names}: {error}") from None
        names = []
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                names.append(name)
        return names

    def save_adapter(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        layers = get_peft_model_state_dict(denoiser, state_dict=state, adapter_name=ADAPTER)
        StableDiffusionXLPipeline.save_lora_weights(
            folder,
            unet_lora_layers={k: v.detach().cpu().contiguous() for k, v in layers.items()},
            unet_lora_adapter_metadata=_metadata(denoiser),
        )
        _sort_metadata(folder / "pytorch_lora_weights.safetensors")

    def load_pipeline(self, model: Model, adapter: Path | None = None) -> StableDiffusionXLPipeline:
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            base_source(model), revision=model.revision, dtype=DTYPES[model.dtype], use_safetensors=True
        )
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        return pipeline


def _metadata(denoiser: Any) -> dict[str, Any]:
    """What a loader needs beside the weights; without it lora_alpha is lost and the reloaded adapter silently wrong."""
    config = denoiser.peft_config[ADAPTER].to_dict()
    known = inspect.signature(LoraConfig).parameters
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items() if k in known}
    return {k: v for k, v in plain.items() if isinstance(v, str | int | float | bool | list)}


def _sort_metadata(file: Path) -> None:
    """Put the header's metadata in order: safetensors writes it in a random one, and equal adapters must be equal files."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

"""SDXL: a UNet in noise or velocity space, two CLIP text encoders, pooled text and sizes in the time embedding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from cpo_ray.config import Model
from cpo_ray.core.diffusion import DiscreteProcess
from cpo_ray.models.base import DTYPES, Conditioning, Family, PictureSize, base_source
from cpo_ray.models.lora_formats import LayerPlace
from cpo_ray.models.on_diffusers import DiffusersFamily, load_vae
from cpo_ray.models.published import SDXL as PUBLISHED
from cpo_ray.models.published import SDXL_LICENCES
from cpo_ray.models.skeleton import Skeleton


class SDXLEncoders:
    """VAE (see `load_vae`) and both text encoders of an SDXL folder or hub id."""

    def __init__(self, model: Model, device: torch.device, vae: Path | None = None) -> None:
        source, dtype = base_source(model), DTYPES[model.dtype]
        self.device = device
        self.vae = load_vae(model, device, vae)
        self.text = StableDiffusionXLPipeline.from_pretrained(
            source, unet=None, vae=None, revision=model.revision, dtype=dtype, use_safetensors=True
        )
        self.text.set_progress_bar_config(disable=True)
        self.zero_null = bool(self.text.config.force_zeros_for_empty_prompt)
        self.token_limit: int = self.text.tokenizer.model_max_length

    def place_text(self, device: torch.device) -> None:
        self.text.to(device)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        latents = self.vae.encode(pictures.to(self.device, self.vae.dtype)).latent_dist.mode().float()
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


class SDXL(DiffusersFamily):
    """`Family` of Stable Diffusion XL and its fine-tunes."""

    name = "sdxl"
    denoiser = "unet"
    denoiser_class = UNet2DConditionModel
    pipeline_class = StableDiffusionXLPipeline
    text_encoder_classes = (CLIPTextModel, CLIPTextModelWithProjection)
    pipeline = "StableDiffusionXLPipeline"
    published = PUBLISHED
    licences = SDXL_LICENCES

    def load_encoders(self, model: Model, device: torch.device, vae: Path | None = None) -> SDXLEncoders:
        return SDXLEncoders(model, device, vae)

    def largest_inputs(self, skeleton: Skeleton, model: Model, batch: int) -> tuple[Tensor, Tensor, Conditioning]:
        config, side = skeleton.denoiser.config, model.resolution // skeleton.factor
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        conditioning = {
            "prompt_embeds": torch.zeros(batch, skeleton.text_tokens[0], config.cross_attention_dim),
            "pooled_prompt_embeds": torch.zeros(batch, pooled),
            "time_ids": torch.zeros(batch, 6),
        }
        return torch.zeros(batch, config.in_channels, side, side), torch.zeros(batch, dtype=torch.long), conditioning

    def load_process(self, model: Model) -> DiscreteProcess:
        scheduler = DDPMScheduler.from_pretrained(base_source(model), subfolder="scheduler", revision=model.revision)
        return DiscreteProcess(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    def predict(self, denoiser: nn.Module, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning["pooled_prompt_embeds"], "time_ids": conditioning["time_ids"]}
        text = conditioning["prompt_embeds"].to(x_t.dtype)
        return denoiser(x_t, timestep, text, added_cond_kwargs=added, return_dict=False)[0]

    def original_place(self, config: Any, module: str) -> LayerPlace:
        return LayerPlace(_original_path(config, module), (module,))


def _original_path(config: Any, module: str) -> str:
    """The original code numbers what goes down and up without blocks, each entry a list: resnet, attention, sampler."""
    if not (match := _IN_BLOCK.fullmatch(module)):
        return _OUTSIDE_BLOCKS[module]
    side, block, kind, number, layer = match.groups(default="0")
    index, last = int(number), config.layers_per_block
    if kind == "resnets":
        layer = _RESNET[layer]
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{layer}"
    first = int(block) * (last + 1)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{first + last + 1}.0.op"
        return f"input_blocks.{first + index + 1}.{int(kind == 'attentions')}.{layer}"
    if kind == "upsamplers":
        return f"output_blocks.{first + last}.{2 if 'CrossAttn' in config.up_block_types[int(block)] else 1}.conv"
    return f"output_blocks.{first + index}.{int(kind == 'attentions')}.{layer}"


_IN_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}

FAMILY: Family = SDXL()

"""How FLUX.1 is loaded, predicts and is exported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, T5EncoderModel

from cpo_ray.config import Model
from cpo_ray.core.diffusion import FlowProcess
from cpo_ray.models.base import Conditioning, Family
from cpo_ray.models.flux.encoders import FluxEncoders, SameTextFluxPipeline, tokens
from cpo_ray.models.flux.names import original_place
from cpo_ray.models.flux.published import LICENCES, PUBLISHED
from cpo_ray.models.flux.tiny import tiny
from cpo_ray.models.on_diffusers import DiffusersFamily
from cpo_ray.models.skeleton import Skeleton


class Flux(DiffusersFamily):
    """`Family` of FLUX.1 and its fine-tunes."""

    name = "flux"
    pipeline = "FluxPipeline"
    pipeline_class = SameTextFluxPipeline
    denoiser = "transformer"
    denoiser_class = FluxTransformer2DModel
    text_encoder_classes = (CLIPTextModel, T5EncoderModel)
    scheduler_class = FlowMatchEulerDiscreteScheduler
    schedulers = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
    encoders_class = FluxEncoders
    tokens_of = staticmethod(tokens)
    original_place = staticmethod(original_place)
    tiny = staticmethod(tiny)
    published = PUBLISHED
    licences = LICENCES
    dynamic_shapes = None  # unpadded texts have a length of their own in every shard

    def text_tokens(self, model: Model, encoders: Sequence[Any]) -> tuple[int, ...]:
        clip, _ = encoders
        return clip.config.max_position_embeddings, model.flow.text_tokens  # T5 has no length of its own

    def largest_inputs(self, skeleton: Skeleton, model: Model, batch: int) -> tuple[Tensor, Tensor, Conditioning]:
        config = skeleton.denoiser.config
        conditioning = {
            "prompt_embeds": torch.ones(batch, model.flow.text_tokens, config.joint_attention_dim),  # zeros would be padding
            "pooled_prompt_embeds": torch.zeros(batch, config.pooled_projection_dim),
            **({"guidance": torch.zeros(batch)} if config.guidance_embeds else {}),
        }
        return torch.zeros(batch, *skeleton.latent_shape(model.resolution)), torch.zeros(batch), conditioning

    def load_process(self, model: Model) -> FlowProcess:
        shift = self._shift_of_base(model)  # also where the configuration has its own, since it checks the scheduler
        return FlowProcess(model.flow.timesteps, model.flow.shift or shift)

    def predict(self, denoiser: nn.Module, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = x_t.shape[-2:]
        tokens, text = pack(x_t), conditioning["prompt_embeds"].to(x_t.dtype)
        velocity = denoiser(
            hidden_states=tokens,
            encoder_hidden_states=text,
            pooled_projections=conditioning["pooled_prompt_embeds"].to(x_t.dtype),
            timestep=timestep,
            guidance=conditioning.get("guidance"),
            img_ids=image_ids(height // 2, width // 2, x_t.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=x_t.device),
            joint_attention_kwargs=_attention(text, tokens),
            return_dict=False,
        )[0]
        return unpack(velocity, height, width)

    def load_pipeline(self, model: Model, adapter: Path | None = None) -> SameTextFluxPipeline:
        pipeline: SameTextFluxPipeline = super().load_pipeline(model, adapter)
        pipeline.settings = model.flow
        pipeline.transformer.register_forward_pre_hook(_hide_padding, with_kwargs=True)
        return pipeline

    def _shift_of_base(self, model: Model) -> float:
        """How far the base's pipeline moves its times at this resolution: FLUX.1-dev the further, the more tokens there are."""
        scheduler = self.scheduler_config(model)
        if not scheduler.get("use_dynamic_shifting", False):
            return float(scheduler.get("shift", 1.0))
        tokens = (model.resolution // (2 * self.latents.factor(self.vae_config(model)))) ** 2
        names = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        return math.exp(calculate_shift(tokens, *(scheduler.get(name, default) for name, default in names.items())))


def pack(latent: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h/2 · w/2, 4 C): one token per patch of 2 x 2, row by row."""
    return functional.pixel_unshuffle(latent, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse of `pack` for a latent of h = height, w = width."""
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows · columns, 3): 0, row and column of every token; those of text are 0, so that padding has no position either."""
    grid = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
    return functional.pad(grid, (1, 0)).float()


def _attention(text: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Return what hides rows of zeros, which fill up a batch of texts (B, L, D), from attention; nothing where there are none."""
    real = text.ne(0).any(dim=-1)
    if bool(real.all()):
        return {}  # attention without a mask is faster
    return {"attention_mask": functional.pad(real, (0, tokens.shape[1]), value=True)[:, None, None]}


def _hide_padding(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same in a pipeline's own calls of its transformer."""
    mask = _attention(keywords["encoder_hidden_states"], keywords["hidden_states"])
    return arguments, keywords | {"joint_attention_kwargs": (keywords.get("joint_attention_kwargs") or {}) | mask}


FAMILY: Family = Flux()

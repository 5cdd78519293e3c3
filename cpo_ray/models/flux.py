"""FLUX.1: a transformer in velocity space over 2 x 2 patches of the latent, CLIP for the pooled text and T5 for its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, T5EncoderModel

from cpo_ray.config import Flow, Model
from cpo_ray.core.diffusion import FlowProcess
from cpo_ray.models.base import DTYPES, Conditioning, Family, PictureSize, base_source
from cpo_ray.models.lora_formats import LayerPlace
from cpo_ray.models.on_diffusers import DiffusersFamily, load_vae
from cpo_ray.models.published import FLUX as PUBLISHED
from cpo_ray.models.published import FLUX_LICENCES
from cpo_ray.models.skeleton import Skeleton


class SameTextFluxPipeline(FluxPipeline):
    """diffusers' pipeline with texts encoded as in training, and with `guidance_scale` meaning the same as for other models.

    Unpadded (`Flow.padded_text` off) a text is its own tokens: T5 attends to them alone, and rows of zeros fill up a batch, which
    the transformer does not attend to either. With padding, everything is as diffusers does it.
    """

    settings: Flow = Flow()

    def _get_t5_prompt_embeds(
        self,
        prompt: Any = None,
        num_images_per_prompt: int = 1,
        max_sequence_length: int = 512,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        if self.settings.padded_text:
            return super()._get_t5_prompt_embeds(prompt, num_images_per_prompt, max_sequence_length, device, dtype)
        tokens = self.tokenizer_2(prompt, padding=True, truncation=True, max_length=max_sequence_length, return_tensors="pt")
        tokens = tokens.to(self.text_encoder_2.device)
        embeds = self.text_encoder_2(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        embeds = embeds.masked_fill(tokens.attention_mask[..., None] == 0, 0)
        return embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)

    def __call__(self, prompt: Any = None, *, negative_prompt: Any = None, guidance_scale: float = 3.5, **keywords: Any) -> Any:
        keywords.setdefault("max_sequence_length", self.settings.text_tokens)
        if negative_prompt is None:
            return super().__call__(prompt, guidance_scale=guidance_scale, **keywords)
        # The embedded guidance leads away from no text; away from a text takes a second pass, and one guidance is enough.
        return super().__call__(
            prompt, negative_prompt=negative_prompt, true_cfg_scale=guidance_scale, guidance_scale=1.0, **keywords
        )


class FluxEncoders:
    """VAE (see `load_vae`) and both text encoders of a FLUX folder or hub id."""

    def __init__(self, model: Model, device: torch.device, vae: Path | None = None) -> None:
        source, self.settings, self.device = base_source(model), model.flow, device
        self.vae = load_vae(model, device, vae)
        self.text = SameTextFluxPipeline.from_pretrained(
            source, transformer=None, vae=None, revision=model.revision, dtype=DTYPES[model.dtype], use_safetensors=True
        )
        self.text.settings = model.flow
        transformer = FluxTransformer2DModel.load_config(source, subfolder="transformer", revision=model.revision)
        self.guided = bool(transformer["guidance_embeds"])  # FLUX.1-schnell is not
        self.token_limit = model.flow.text_tokens

    def place_text(self, device: torch.device) -> None:
        self.text.to(device)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        latents = self.vae.encode(pictures.to(self.device, self.vae.dtype)).latent_dist.mode().float()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, pooled, _ = self.text.encode_prompt(list(prompts), device=self.device, max_sequence_length=self.token_limit)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def micro_conditioning(self, sizes: Sequence[PictureSize]) -> Conditioning:
        # Stored with the sample, so that the expert, the reference and the trained model are told the same.
        guidance = torch.full((len(sizes),), self.settings.guidance, dtype=torch.float32, device=self.device)
        return {"guidance": guidance} if self.guided else {}

    def count_tokens(self, text: str) -> int:
        # CLIP sees the first 77 tokens only, and only for the pooled text.
        return len(self.text.tokenizer_2(text, truncation=False, verbose=False).input_ids)


class Flux(DiffusersFamily):
    """`Family` of FLUX.1 and its fine-tunes."""

    name = "flux"
    denoiser = "transformer"
    denoiser_class = FluxTransformer2DModel
    pipeline_class = SameTextFluxPipeline
    text_encoder_classes = (CLIPTextModel, T5EncoderModel)
    pipeline = "FluxPipeline"
    published = PUBLISHED
    licences = FLUX_LICENCES
    dynamic_shapes = None  # unpadded texts have a length of their own in every shard

    def load_encoders(self, model: Model, device: torch.device, vae: Path | None = None) -> FluxEncoders:
        return FluxEncoders(model, device, vae)

    def largest_inputs(self, skeleton: Skeleton, model: Model, batch: int) -> tuple[Tensor, Tensor, Conditioning]:
        config, side = skeleton.denoiser.config, model.resolution // skeleton.factor
        conditioning = {
            "prompt_embeds": torch.ones(batch, model.flow.text_tokens, config.joint_attention_dim),  # zeros would be padding
            "pooled_prompt_embeds": torch.zeros(batch, config.pooled_projection_dim),
            **({"guidance": torch.zeros(batch)} if config.guidance_embeds else {}),
        }
        return torch.zeros(batch, config.in_channels // 4, side, side), torch.zeros(batch), conditioning

    def load_process(self, model: Model) -> FlowProcess:
        return FlowProcess(model.flow.timesteps, model.flow.shift or _shift_of_base(model))

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

    def original_place(self, config: Any, module: str) -> LayerPlace:
        stack, _, rest = module.partition(".")
        number, _, layer = rest.partition(".")
        original, path, parts = _PLACES[stack, layer]
        return LayerPlace(f"{original}.{number}.{path}", tuple(f"{stack}.{number}.{part}" for part in parts))


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
    """What hides rows of zeros, which fill up a batch of texts (B, L, D), from attention; nothing where there are none."""
    real = text.ne(0).any(dim=-1)
    if bool(real.all()):
        return {}  # attention without a mask is faster
    return {"attention_mask": functional.pad(real, (0, tokens.shape[1]), value=True)[:, None, None]}


def _hide_padding(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same in a pipeline's own calls of its transformer."""
    mask = _attention(keywords["encoder_hidden_states"], keywords["hidden_states"])
    return arguments, keywords | {"joint_attention_kwargs": (keywords.get("joint_attention_kwargs") or {}) | mask}


def _shift_of_base(model: Model) -> float:
    """How far the base's pipeline moves its times at this resolution: FLUX.1-dev the further, the more tokens there are."""
    source = base_source(model)
    scheduler = FlowMatchEulerDiscreteScheduler.load_config(source, subfolder="scheduler", revision=model.revision)
    if not scheduler.get("use_dynamic_shifting", False):
        return float(scheduler.get("shift", 1.0))
    vae = AutoencoderKL.load_config(source, subfolder="vae", revision=model.revision)
    tokens = (model.resolution // 2 ** len(vae["block_out_channels"])) ** 2  # the VAE's factor, twice
    names = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    return math.exp(calculate_shift(tokens, *(scheduler.get(name, default) for name, default in names.items())))


#: Layers of one block in the original code, and what they are in diffusers.
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_PLACES = {
    (stack, part): (original, path, parts)
    for stack, original, places in (
        ("transformer_blocks", "double_blocks", _DOUBLE),
        ("single_transformer_blocks", "single_blocks", _SINGLE),
    )
    for path, parts in places.items()
    for part in parts
}

FAMILY: Family = Flux()

"""SDXL and FLUX.1 with random weights, made where they are used: at their published size, or small for machines without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from cpo_ray.config import Lora, Model
from cpo_ray.diffusion import DiffusionProcess, DiscreteProcess, FlowProcess
from cpo_ray.models import family
from cpo_ray.models.base import DTYPES, Conditioning, PictureSize
from cpo_ray.models.published import FLUX_TRANSFORMER, SDXL_UNET

_VAES: dict[str, dict[str, Any]] = {
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025},
    "flux": {"latent_channels": 16, "scaling_factor": 0.3611, "use_quant_conv": False, "use_post_quant_conv": False},
}
for _config in _VAES.values():
    _config |= {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}


@dataclass(frozen=True)
class Size:
    """Pixels of a picture's side, tokens of a text, and what differs from the published configurations."""

    pixels: int
    tokens: int
    denoiser: dict[str, Any]
    vae: dict[str, Any]
    text: tuple[dict[str, Any], dict[str, Any]]


_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_VAE = {"block_out_channels": (32, 32, 64, 64)}
SIZES = {
    ("sdxl", "full"): Size(1024, 77, {}, {}, ({}, {})),
    ("flux", "full"): Size(1024, 512, {}, {}, ({}, {})),
    ("sdxl", "small"): Size(
        128,
        77,
        {
            "block_out_channels": (32, 64, 128),
            "attention_head_dim": (1, 2, 4),
            "transformer_layers_per_block": (1, 1, 2),
            "cross_attention_dim": 64,
            "projection_class_embeddings_input_dim": 32 + 6 * 256,
        },
        _VAE,
        (_CLIP, _CLIP),
    ),
    ("flux", "small"): Size(
        128,
        64,
        {
            "num_layers": 2,
            "num_single_layers": 4,
            "attention_head_dim": 32,
            "num_attention_heads": 8,
            "axes_dims_rope": (8, 12, 12),
            "joint_attention_dim": 64,
            "pooled_projection_dim": 32,
        },
        _VAE,
        (_CLIP, _T5),
    ),
}


class RandomEncoders:
    """VAE and text encoders as `models.base.Encoders` has them; a text is random tokens, as many as the model takes."""

    def __init__(self, name: str, size: Size, model: Model, device: torch.device, vae: torch.dtype) -> None:
        with _made(device, vae):
            self.vae = AutoencoderKL(**_VAES[name] | size.vae).eval().requires_grad_(False)
        with _made(device, DTYPES[model.dtype]):
            self.text = [encoder.eval().requires_grad_(False) for encoder in _text_encoders(name, *size.text)]
        self.name, self.size, self.device, self.token_limit = name, size, device, size.tokens

    def place_text(self, device: torch.device) -> None:
        for encoder in self.text:
            encoder.to(device)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        latents = self.vae.encode(pictures.to(self.device, self.vae.dtype)).latent_dist.mode().float()
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        clip = self.text[0](torch.randint(1000, (len(prompts), 77), device=self.device), output_hidden_states=True)
        second = self.text[1](
            torch.randint(1000, (len(prompts), self.size.tokens), device=self.device), output_hidden_states=True
        )
        if self.name == "flux":
            return {"prompt_embeds": second.last_hidden_state, "pooled_prompt_embeds": clip.pooler_output}
        embeds = torch.cat([clip.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": second.text_embeds}

    def micro_conditioning(self, sizes: Sequence[PictureSize]) -> Conditioning:
        if self.name == "flux":
            return {"guidance": torch.ones(len(sizes), device=self.device)}
        return {"time_ids": torch.tensor([[*s.original, *s.crop, *s.target] for s in sizes], device=self.device).float()}

    def count_tokens(self, text: str) -> int:
        return len(text.split()) + 2


def random_family(name: str, size: Size, device: torch.device) -> Any:
    """The architecture's `Family`, whose models are random ones on `device`.

    All denoisers that it loads share their weights, so that several roles fit on one GPU: an adapter gives its layers weights of
    their own, as merging does, and so does training the whole.
    """

    architecture: Any = type(family(Model(family=name, base="random")))

    class Random(architecture):
        def __init__(self) -> None:
            self.made: nn.Module | None = None
            self.encoders: RandomEncoders | None = None

        def load_denoiser(self, model: Model, adapter: Path | None = None) -> nn.Module:
            if self.made is None:
                with _made(device, DTYPES[model.dtype]):
                    made = {"sdxl": (UNet2DConditionModel, SDXL_UNET), "flux": (FluxTransformer2DModel, FLUX_TRANSFORMER)}[name]
                    self.made = made[0](**made[1] | size.denoiser).eval().requires_grad_(False)
            denoiser = copy.deepcopy(self.made, {id(parameter): parameter for parameter in self.made.parameters()})
            if adapter is not None:
                for path, layer in denoiser.named_modules():
                    if isinstance(layer, nn.Linear) and path.endswith(Lora().targets):
                        merged = layer.weight + 0.05 * layer.weight.std() * torch.randn_like(layer.weight)
                        layer.weight = nn.Parameter(merged, requires_grad=False)
            return denoiser

        def load_encoders(self, model: Model, device: torch.device, vae: Path | None = None) -> RandomEncoders:
            if self.encoders is None:
                self.encoders = RandomEncoders(name, size, model, device, torch.float32 if vae is None else torch.float16)
            return self.encoders

        def load_process(self, model: Model) -> DiffusionProcess:
            if name == "flux":
                return FlowProcess()
            scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
            return DiscreteProcess(scheduler.alphas_cumprod, "epsilon")

    return Random()


def _text_encoders(name: str, first: dict[str, Any], second: dict[str, Any]) -> tuple[Any, Any]:
    """CLIP-L, and OpenCLIP bigG or T5-XXL; `first` and `second` are what is to be different about them."""
    clip = CLIPTextModel(CLIPTextConfig(**_CLIP_L | first))
    if name == "flux":
        return clip, T5EncoderModel(T5Config(**_T5_XXL | second))
    big = _CLIP_BIG_G | {"projection_dim": 1280, "hidden_act": "gelu"} | second
    return clip, CLIPTextModelWithProjection(CLIPTextConfig(**big))


@contextmanager
def _made(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Models made in the block are on the device in this dtype from the start: no float32, no main memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)

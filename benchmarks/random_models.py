"""SDXL and FLUX.1 with random weights, made where they are used: at their published size, or small for machines without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from cpo_ray.config import Lora, Model
from cpo_ray.core.diffusion import DiffusionProcess, DiscreteProcess, FlowProcess
from cpo_ray.models import family
from cpo_ray.models.base import DTYPES, Conditioning, PictureSize
from cpo_ray.models.published import FLUX, SDXL
from cpo_ray.models.skeleton import made_in

PUBLISHED = {"sdxl": SDXL, "flux": FLUX}


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
        with made_in(device, vae):
            self.vae = AutoencoderKL(**PUBLISHED[name].vae | size.vae).eval().requires_grad_(False)
        with made_in(device, DTYPES[model.dtype]):
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
                with made_in(device, DTYPES[model.dtype]):
                    made = architecture.denoiser_class(**PUBLISHED[name].denoiser | size.denoiser)
                    self.made = made.eval().requires_grad_(False)
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


def _text_encoders(name: str, *different: dict[str, Any]) -> list[Any]:
    """CLIP-L, and OpenCLIP bigG or T5-XXL; `different` is what is not as published."""
    kinds = CLIPTextModel, T5EncoderModel if name == "flux" else CLIPTextModelWithProjection
    return [
        kind(kind.config_class(**values | changed))
        for kind, values, changed in zip(kinds, PUBLISHED[name].text_encoders, different, strict=True)
    ]

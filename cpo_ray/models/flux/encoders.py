"""FLUX.1's VAE and text encoders, and its pipeline with texts encoded as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from cpo_ray.config import Flow, Model
from cpo_ray.core.picture_size import PictureSize
from cpo_ray.models.base import Conditioning, Tokens
from cpo_ray.models.encoders import PipelineEncoders
from cpo_ray.models.on_diffusers import DiffusersFamily


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
        embeds: Tensor
        if self.settings.padded_text:
            embeds = super()._get_t5_prompt_embeds(prompt, num_images_per_prompt, max_sequence_length, device, dtype)
            return embeds
        tokens = self.tokenizer_2(prompt, padding=True, truncation=True, max_length=max_sequence_length, return_tensors="pt")
        tokens = tokens.to(self.text_encoder_2.device)
        embeds = self.text_encoder_2(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        embeds = embeds.masked_fill(tokens.attention_mask[..., None] == 0, 0)
        embeds = embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)
        return embeds

    def __call__(self, prompt: Any = None, *, negative_prompt: Any = None, guidance_scale: float = 3.5, **keywords: Any) -> Any:
        keywords.setdefault("max_sequence_length", self.settings.text_tokens)
        if negative_prompt is None:
            return super().__call__(prompt, guidance_scale=guidance_scale, **keywords)
        # The embedded guidance leads away from no text; away from a text takes a second pass, and one guidance is enough.
        return super().__call__(
            prompt, negative_prompt=negative_prompt, true_cfg_scale=guidance_scale, guidance_scale=1.0, **keywords
        )


def tokens(pipeline: Any, model: Model) -> Tokens:
    """T5 decides what fits: CLIP sees the first 77 tokens only, and only for the pooled text."""

    def count(text: str) -> int:
        return len(pipeline.tokenizer_2(text, truncation=False, verbose=False).input_ids)

    return Tokens(count, model.flow.text_tokens)


class FluxEncoders(PipelineEncoders):
    """VAE and both text encoders."""

    def __init__(self, family: DiffusersFamily, model: Model, device: torch.device, vae: Path | None = None) -> None:
        super().__init__(family, model, device, vae)
        self.text.settings = model.flow
        self.guided = bool(family.denoiser_config(model)["guidance_embeds"])  # FLUX.1-schnell is not
        self.count_tokens, self.token_limit = tokens(self.text, model)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, pooled, _ = self.text.encode_prompt(list(prompts), device=self.device, max_sequence_length=self.token_limit)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def micro_conditioning(self, sizes: Sequence[PictureSize]) -> Conditioning:
        # Stored with the sample, so that the expert, the reference and the trained model are told the same.
        guidance = torch.full((len(sizes),), self.text.settings.guidance, dtype=torch.float32, device=self.device)
        return {"guidance": guidance} if self.guided else {}

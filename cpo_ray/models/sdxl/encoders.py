"""SDXL's VAE and text encoders, and what its UNet is told beside the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cpo_ray.config import Model
from cpo_ray.models.base import Conditioning, PictureSize
from cpo_ray.models.encoders import PipelineEncoders
from cpo_ray.models.on_diffusers import DiffusersFamily


class SDXLEncoders(PipelineEncoders):
    """VAE and both text encoders."""

    def __init__(self, family: DiffusersFamily, model: Model, device: torch.device, vae: Path | None = None) -> None:
        super().__init__(family, model, device, vae)
        self.zero_null = bool(self.text.config.force_zeros_for_empty_prompt)
        self.token_limit: int = self.text.tokenizer.model_max_length

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

"""SDXL's VAE and text encoders, what its UNet is told beside the text, and its pipeline with texts encoded as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from cpo_ray.config import Model
from cpo_ray.core.picture_size import PictureSize
from cpo_ray.models.base import Conditioning, Tokens
from cpo_ray.models.encoders import PipelineEncoders
from cpo_ray.models.on_diffusers import DiffusersFamily


class LongTextPipeline(StableDiffusionXLPipeline):
    """diffusers' pipeline, whose texts may be longer than the 75 tokens that CLIP reads at once.

    With more than one of `chunks`, a text is cut into so many parts of 75 tokens, each encoded for itself, and the UNet sees them
    one after the other. Short texts have empty parts at their end, so that all are equally long. The pooled embedding is that of
    the first part. With one, everything is as diffusers does it.
    """

    chunks: int = 1

    def encode_prompt(
        self,
        prompt: Any,
        *arguments: Any,
        negative_prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        **keywords: Any,
    ) -> Any:
        if self.chunks == 1 or prompt_embeds is not None:
            return super().encode_prompt(
                prompt, *arguments, negative_prompt=negative_prompt, prompt_embeds=prompt_embeds, **keywords
            )
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        given = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), self.encode_chunks(texts), strict=True))
        if negative_prompt is not None or not self.config.force_zeros_for_empty_prompt:
            against = negative_prompt or ""
            refused = [against] * len(texts) if isinstance(against, str) else list(against)
            named = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
            given |= dict(zip(named, self.encode_chunks(refused), strict=True))
        return super().encode_prompt(None, *arguments, **{**keywords, **given})

    def encode_chunks(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, 77 · chunks, D) and the pooled embeddings (B, P) of B texts; what is longer is cut off."""
        hidden = []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            rows = torch.tensor([row for text in texts for row in self._rows(tokenizer, text)], device=encoder.device)
            encoded = encoder(rows, output_hidden_states=True)
            hidden.append(encoded.hidden_states[-2].unflatten(0, (len(texts), self.chunks)).flatten(1, 2))
        pooled: Tensor = encoded[0].unflatten(0, (len(texts), self.chunks))[:, 0]
        return torch.cat(hidden, dim=-1), pooled

    def _rows(self, tokenizer: Any, text: str) -> list[list[int]]:
        """Return the ids of a text's parts, each with its start and end, and filled up as diffusers does it."""
        inside = int(tokenizer.model_max_length) - 2
        ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        parts = (ids[chunk * inside : (chunk + 1) * inside] for chunk in range(self.chunks))
        return [
            [tokenizer.bos_token_id, *part, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * (inside - len(part))]
            for part in parts
        ]


def tokens(pipeline: Any, model: Model) -> Tokens:
    """Two encoders read a text; the longer tokenisation decides what fits."""
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)

    def count(text: str) -> int:
        return max(len(tokenizer(text, truncation=False, verbose=False).input_ids) for tokenizer in tokenizers)

    inside = int(pipeline.tokenizer.model_max_length) - 2
    return Tokens(count, model.text_chunks * inside + 2)


class SDXLEncoders(PipelineEncoders):
    """VAE and both text encoders."""

    def __init__(self, family: DiffusersFamily, model: Model, device: torch.device, vae: Path | None = None) -> None:
        super().__init__(family, model, device, vae)
        self.text.chunks = model.text_chunks
        self.zero_null = bool(self.text.config.force_zeros_for_empty_prompt)
        self.count_tokens, self.token_limit = tokens(self.text, model)

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

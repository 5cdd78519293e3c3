"""Vision-language models that transformers can load: pictures and questions in, answers of the required form out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessorList

from cpo_ray.models.base import DTYPES
from cpo_ray.models.constrained import ConstrainedAnswers, Vocabulary


class VisionLanguageError(ValueError):
    """The model cannot be used; the message is one sentence that says why."""


@dataclass(frozen=True)
class Generated:
    """One answer, with the tokens that went in (including the picture's) and came out."""

    text: str
    tokens_in: int
    tokens_out: int


class VisionLanguageModel:
    """A model with its processor, frozen, on one device. Code from a repository is never run, and weights are safetensors."""

    def __init__(self, source: str, revision: str | None, dtype: str, device: str) -> None:
        """Load `source`, a hub id or a folder. Raises VisionLanguageError if it is not such a model or takes no pictures."""
        try:
            self._processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
            self._model = AutoModelForImageTextToText.from_pretrained(
                source, revision=revision, trust_remote_code=False, dtype=DTYPES[dtype], use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise VisionLanguageError(f"{source} cannot be loaded as a vision-language model: {_first_line(error)}") from None
        self._tokenizer = getattr(self._processor, "tokenizer", None)
        if self._tokenizer is None or not self._processor.chat_template:
            raise VisionLanguageError(
                f"{source} has no tokenizer or no chat template; choose a model that was tuned to instructions"
            )
        # Padding on the left lets all answers of a batch begin at the same place.
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._padding: int = self._tokenizer.pad_token_id
        self._model.eval().requires_grad_(False).to(device)
        self._vocabulary = Vocabulary(self._tokenizer)
        self._reserved = sorted({*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()}, key=len, reverse=True)

    @torch.inference_mode()
    def generate(
        self, pictures: Sequence[Image.Image], questions: Sequence[str], schemas: Sequence[dict[str, Any]], max_tokens: int
    ) -> list[Generated]:
        """Return one answer per picture and question: the most probable one of the form that its schema describes.

        An answer longer than `max_tokens` comes back unfinished.
        """
        prompts = [self._prompt(question) for question in questions]
        images = [[picture] for picture in pictures]
        inputs = self._processor(text=prompts, images=images, padding=True, return_tensors="pt").to(self._model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        constraint = ConstrainedAnswers(self._vocabulary, schemas)
        output = self._model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max_tokens,
            logits_processor=LogitsProcessorList([constraint]),
            eos_token_id=self._vocabulary.end,
            pad_token_id=self._padding,
        )
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [self._read(tokens, length) for tokens, length in zip(answers, lengths, strict=True)]

    def _prompt(self, question: str) -> str:
        """Return the question in the model's chat format, with a place for the picture."""
        # A caption must not contain the tokens for a picture or the end of a turn.
        for token in self._reserved:
            question = question.replace(token, " ")
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt: str = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return prompt

    def _read(self, tokens: list[int], length: int) -> Generated:
        """Return the text as it was constrained; decoding again could place blanks differently."""
        end = tokens.index(self._vocabulary.end) if self._vocabulary.end in tokens else len(tokens)
        return Generated("".join(self._vocabulary.texts.get(token, "") for token in tokens[:end]), int(length), end)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

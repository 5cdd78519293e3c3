"""The model card beside trained weights: what they are, how to load them, their licence, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml

from cpo_ray.config import Model
from cpo_ray.core.files import write_text
from cpo_ray.models import family
from cpo_ray.models.bases.source import base_source

_EVALUATION = ("<!-- evaluation -->", "<!-- end of evaluation -->")
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


def card_text(model: Model, card: Mapping[str, str], parameters: Literal["lora", "full"] = "lora") -> str:
    """Return a model card in the form of diffusers and the hub; `card` gives the lines of its table."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in card.items())
    revision = f" at revision {model.revision}" if model.revision else ""
    licence = base_licence(model)
    head = {
        "library_name": "diffusers",
        "base_model": model.base,
        **({"license": "other", "license_name": licence} if licence else {}),
        "tags": ["text-to-image", family(model).name, "cpo", *(["lora"] if parameters == "lora" else [])],
    }
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# Trained on {model.base}\n\n"
        f"Weights for {model.base}{revision}, written by cpo_ray. "
        "Loaded back after the export, they gave the trained model's output.\n\n"
        f"{_usage(model, parameters)}\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        "Licence: these weights are a derivative of the base model and of the training pictures; the terms of both apply. "
        f"The base's: {licence or 'not stated where it was loaded from; look it up before you pass these on'}.\n"
    )


def add_evaluation(folder: Path, section: str) -> None:
    """Put an evaluation at the end of the model card in `folder`, replacing an earlier one. The rest stays as it is.

    `section` is Markdown that ends with a line feed. Nothing happens if the card was removed.
    """
    card = folder / "README.md"
    if card.exists():
        text, marked = card.read_text(encoding="utf-8"), f"{_EVALUATION[0]}\n{section}{_EVALUATION[1]}\n"
        before, begun, rest = text.partition(f"{_EVALUATION[0]}\n")
        _, _, after = rest.partition(f"{_EVALUATION[1]}\n")
        write_text(card, before + marked + after if begun else f"{text}\n{marked}")


def base_licence(model: Model) -> str | None:
    """Return the licence that a base's own model card states, or the known one of a published base; None if unknown."""
    card = Path(base_source(model)) / "README.md"
    if card.is_file() and (front := _FRONT_MATTER.match(card.read_text(encoding="utf-8"))):
        fields = yaml.safe_load(front[1])
        named = (fields.get("license_name"), fields.get("license")) if isinstance(fields, dict) else ()
        if stated := next((str(name) for name in named if name), None):
            return stated
    return family(model).licences.get(model.base)


def _usage(model: Model, parameters: Literal["lora", "full"]) -> str:
    """Return how diffusers loads an export."""
    found, base = family(model), repr(model.base) + (f", revision={model.revision!r}" if model.revision else "")
    if parameters == "lora":
        usage = (
            "FOLDER is this folder:\n\n"
            f"    pipeline = diffusers.{found.pipeline}.from_pretrained({base})\n"
            "    pipeline.load_lora_weights(FOLDER)\n\n"
            "`formats/` holds the same for kohya's scripts and ComfyUI."
        )
    else:
        part, denoiser = found.denoiser, found.denoiser_class.__name__
        usage = (
            "The denoiser alone, as diffusers saves it. FOLDER is this folder:\n\n"
            f'    {part} = diffusers.{denoiser}.from_pretrained(FOLDER, subfolder="{part}")\n'
            f"    pipeline = diffusers.{found.pipeline}.from_pretrained({base}, {part}={part})"
        )
    if model.text_chunks == 1:
        return usage
    kind = found.pipeline_class
    return (
        f"{usage}\n\nIt was trained on texts in {model.text_chunks} parts of 75 tokens, and diffusers' own pipeline reads the "
        "first. This one reads all:\n\n"
        f"    from {kind.__module__} import {kind.__name__}\n\n"
        f"    pipeline = {kind.__name__}.from_pretrained({base})\n"
        f"    pipeline.chunks = {model.text_chunks}"
    )

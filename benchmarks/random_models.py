"""A family with random weights, made where they are used: at their published size, or small for machines without a GPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ConfigMixin
from torch import nn

from cpo_ray.config import Flow, Lora, Model
from cpo_ray.models import family
from cpo_ray.models.base import DTYPES, Family
from cpo_ray.models.skeleton import Configurations, made_in
from cpo_ray.models.tiny import Widths

#: A text is filled up to its greatest length, whatever its words.
CORPUS = ("a red circle on a green wall", "blue square over sea")


@dataclass(frozen=True)
class Size:
    """Pixels of a picture's side, tokens of a text where the model lets us choose, and what the models are built from."""

    pixels: int
    tokens: int
    configurations: Configurations


def size_of(name: str, size: Literal["full", "small"]) -> Size:
    """Return the published size of a family, or a small one."""
    found = family(Model(family=name, base="random"))
    if size == "full":
        return Size(1024, 512, found.published)
    return Size(128, 64, found.tiny(Widths(denoiser=(128, 256), text=64, text_tokens=77, vae=(32, 32, 64, 64))))


def parameters_of(name: str, size: Size) -> int:
    """Count the parameters of the denoiser."""
    architecture: Any = family(Model(family=name, base="random"))
    with made_in(torch.device("meta"), torch.float32):
        made: nn.Module = architecture.denoiser_class.from_config(size.configurations.denoiser)
    return sum(values.numel() for values in made.parameters())


def random_model(name: str, size: Size, folder: Path, device: torch.device) -> tuple[Family, Model]:
    """Return the family with models of random weights on `device`, and a model section for it.

    `folder` gets what a base has beside its weights. All denoisers that the family loads share their weights, so that several
    roles fit on one GPU: an adapter gives its layers weights of their own, as merging does, and so does training the whole.
    """
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if device.type == "cuda" else "float32"
    flow = Flow(text_tokens=size.tokens, padded_text=True)
    model = Model(family=name, base=str(folder), dtype=dtype, resolution=size.pixels, flow=flow)
    architecture: Any = type(family(model))

    class Random(architecture):
        def __init__(self) -> None:
            with made_in(device, DTYPES[dtype]):
                self.made = self.random_pipeline(size.configurations, CORPUS)
            for part, made in self.made.components.items():
                if isinstance(made, nn.Module):
                    made.eval().requires_grad_(False)
                if isinstance(made, ConfigMixin):
                    made.save_config(folder / part)

        def load_denoiser(self, model: Model, adapter: Path | None = None) -> nn.Module:
            made: nn.Module = self.made.components[self.denoiser]
            denoiser = copy.deepcopy(made, {id(values): values for values in made.parameters()})
            if adapter is not None:
                for path, layer in denoiser.named_modules():
                    if isinstance(layer, nn.Linear) and path.endswith(Lora().targets):
                        merged = layer.weight + 0.05 * layer.weight.std() * torch.randn_like(layer.weight)
                        layer.weight = nn.Parameter(merged, requires_grad=False)
            return denoiser

        def load_text(self, model: Model) -> Any:
            parts = {name: None if name in (self.denoiser, "vae") else part for name, part in self.made.components.items()}
            return self.pipeline_class(**parts, **size.configurations.pipeline)

        def load_vae(self, model: Model, device: torch.device, folder: Path | None) -> Any:
            return self.made.vae.to(torch.float32 if folder is None else torch.float16)

    return Random(), model

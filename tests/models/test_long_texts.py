"""SDXL's texts of more than one part: the same in training and in drawing, and as diffusers has it where one part is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_training import write_base
from torch import Tensor

from cpo_ray.config import ConfigError, Model
from cpo_ray.models import family
from cpo_ray.models.tiny import Widths

CPU = torch.device("cpu")
WORDS = ["red", "circle", "on", "green", "wall", "with", "clear", "edges", "and", "a", "muddy", "palette"]
LONG = " ".join(WORDS[n % len(WORDS)] for n in range(100))
INSIDE = 46


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder, sdxl = tmp_path_factory.mktemp("sdxl"), Model(family="sdxl", base="", resolution=64)
    torch.manual_seed(0)
    family(sdxl).random_pipeline(family(sdxl).tiny(Widths(text_tokens=INSIDE + 2)), [" ".join(WORDS)]).save_pretrained(folder)
    return sdxl.model_copy(update={"base": str(folder)})


def in_chunks(model: Model, chunks: int) -> Model:
    return model.model_copy(update={"text_chunks": chunks})


def encoded(model: Model, *texts: str) -> tuple[Tensor, Tensor]:
    made = family(model).load_encoders(model, CPU).encode_prompts(texts)
    return made["prompt_embeds"], made["pooled_prompt_embeds"]


def test_a_part_is_what_diffusers_makes_of_its_words(model: Model) -> None:
    words = LONG.split()
    parts = [" ".join(words[start : start + INSIDE]) for start in range(0, len(words), INSIDE)]
    long, pooled = encoded(in_chunks(model, 4), LONG)
    alone, first = encoded(model, *parts, " ")
    assert len(parts) == 3 and long.shape[1] == 4 * (INSIDE + 2)
    torch.testing.assert_close(long.unflatten(1, (4, INSIDE + 2))[0, :3], alone[:3])
    torch.testing.assert_close(pooled, first[:1])
    torch.testing.assert_close(long[0, -(INSIDE + 2) :], alone[3])  # an empty part


def test_a_longer_limit_for_what_a_text_may_have(model: Model) -> None:
    for chunks, most in ((1, INSIDE + 2), (3, 3 * INSIDE + 2)):
        assert family(model).load_encoders(in_chunks(model, chunks), CPU).token_limit == most
    nothing, long = encoded(in_chunks(model, 3), "", LONG)[0]
    assert nothing.shape == long.shape, "all texts are equally long"


@pytest.mark.parametrize("against", [None, LONG[::-1]])
def test_pictures_are_drawn_with_the_texts_of_training(model: Model, against: str | None) -> None:
    long = in_chunks(model, 3)
    pipeline: Any = family(long).load_pipeline(long)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[Tensor] = []
    pipeline.unet.register_forward_pre_hook(lambda _, given, named: seen.append(named["encoder_hidden_states"]), with_kwargs=True)

    def drawn(prompt: str) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        told = {"num_inference_steps": 1, "height": 64, "width": 64, "generator": noise, "output_type": "latent"}
        latent: Tensor = pipeline(prompt=[prompt], negative_prompt=against and [against], guidance_scale=3.0, **told).images
        return latent

    one, other = drawn(LONG), drawn(LONG.removesuffix(LONG.split()[-1]) + "muddy")
    refused, told = seen[0]
    torch.testing.assert_close(told, encoded(long, LONG)[0][0])
    torch.testing.assert_close(refused, encoded(long, against or "")[0][0])
    assert not torch.equal(one, other), "the last word counts"


def test_parts_that_a_family_does_not_know_are_refused(tmp_path: Path) -> None:
    flux = in_chunks(write_base(tmp_path / "base", "flux"), 2)
    with pytest.raises(ConfigError, match=r"model\.text_chunks = 2 has no effect for flux; leave it out"):
        family(flux).load_encoders(flux, CPU)

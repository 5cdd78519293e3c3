"""The real SDXL and FLUX.1 on the meta device: what they weigh and take, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cpo_ray.config import Lora, Model, load
from cpo_ray.core.schema import target_row_bytes
from cpo_ray.models import family
from cpo_ray.models.base import Family
from cpo_ray.preflight.disk import row_of
from cpo_ray.preflight.model_costs import encode_cost, forward_cost, numbers

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def published(name: str) -> tuple[Family, Model, Any]:
    """The family, its published base's model section, and the denoiser on the meta device."""
    found = family(model := Model(family=name, base="published"))
    return found, model, found.skeleton(model).denoiser


def parameters(denoiser: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in denoiser.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize(("name", "count"), [("sdxl", 2_567_463_684), ("flux", 11_901_408_320)])
def test_they_are_the_published_architectures(name: str, count: int) -> None:
    assert parameters(published(name)[2]) == count


@pytest.mark.parametrize(
    ("name", "rank", "layers", "size"),
    [
        # A transformer block of width c: self-attention 4 (c + c), attention to 2048 wide text 2 (c + c) + 2 (c + 2048), times r:
        # r (16 c + 4096 - 2 c). 10 blocks are 640 wide, 60 are 1280; each has 8 layers.
        ("sdxl", 16, 70 * 8, 16 * (10 * (14 * 640 + 4096) + 60 * (14 * 1280 + 4096))),
        # Query, key and value of 57 blocks, and the output of the 19 of two streams, all 3072 wide.
        ("flux", 8, 57 * 3 + 19, (57 * 3 + 19) * 8 * 2 * 3072),
    ],
)
def test_the_adapter_reaches_the_attention_and_has_this_size(name: str, rank: int, layers: int, size: int) -> None:
    architecture, _, denoiser = published(name)
    found = architecture.add_lora(denoiser, Lora(rank=rank, alpha=rank), seed=0)
    assert len(found) == 2 * layers
    assert parameters(denoiser, trained=True) == size
    assert {"sdxl": 23_224_320, "flux": 9_338_880}[name] == size


@pytest.mark.parametrize(
    ("name", "changed", "gigabytes"),
    [
        # Attention of a block of width c: 4 c² on itself, 2 c² and 2 · 2048 c on the text.
        ("sdxl", 10 * (6 * 640**2 + 4096 * 640) + 60 * (6 * 1280**2 + 4096 * 1280), 7.0),
        ("flux", (57 * 3 + 19) * 3072**2, 27.4),
    ],
)
def test_a_merged_adapter_leaves_most_weights_to_the_reference(name: str, changed: int, gigabytes: float) -> None:
    """What `targets.frozen` holds for the pair, in bfloat16."""
    _, _, denoiser = published(name)
    found = sum(
        layer.weight.numel()
        for path, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear) and path.endswith(Lora().targets)
    )
    assert found == changed
    assert 2 * (parameters(denoiser) + found) / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(("name", "teraflop"), [("sdxl", 6.76), ("flux", 74.4)])
def test_a_forward_at_1024_pixels_costs_what_was_counted(name: str, teraflop: float) -> None:
    """FLUX.1 with all 512 tokens."""
    assert forward_cost(Model(family=name, base="published"), None, 1).flop / 1e12 == pytest.approx(teraflop, rel=0.01)


@pytest.mark.parametrize(("name", "encoder", "text"), [("sdxl", 4.88, 817_720_320), ("flux", 4.88, 4_885_371_136)])
def test_encoders_are_the_published_ones(name: str, encoder: float, text: int) -> None:
    """VAE 4.9 TFLOP per picture; CLIP-L has 123 million parameters, bigG 695 and T5-XXL 4,762."""
    model = Model(family=name, base="published")
    count, pictures = encode_cost(model, None)
    assert pictures == 1 and count.flop / 1e12 == pytest.approx(encoder, rel=0.01)
    assert numbers(family(model).skeleton(model).text_encoders) == text


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # Per number of the latent six float16 and one float32, so 16 bytes; text in float16.
        # Rows for the tokens, of three parts in the preset, one for the pooled text, and six sizes or a guidance value.
        ("sdxl", 16 * 4 * 128 * 128 + 2 * (3 * 77 * (768 + 1280) + 1280 + 6)),
        ("flux", 16 * 16 * 128 * 128 + 2 * (512 * 4096 + 768 + 1)),
    ],
)
def test_a_row_of_targets_takes_this_much(name: str, size: int) -> None:
    config = load(CONFIGS / f"{name}_lora.toml")
    assert target_row_bytes(*row_of(config, None)) == size
    assert {"sdxl": 2.0e6, "flux": 8.4e6}[name] == pytest.approx(size, rel=0.06)

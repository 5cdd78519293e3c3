"""The real SDXL and FLUX.1 on the meta device: what they weigh and take, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cpo_ray.config import Lora, Model
from cpo_ray.models import family
from cpo_ray.models.published import published_denoiser
from cpo_ray.schema import target_row_bytes

FAMILIES = pytest.mark.parametrize("name", ["sdxl", "flux"])


def parameters(denoiser: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in denoiser.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize(("name", "count"), [("sdxl", 2_567_463_684), ("flux", 11_901_408_320)])
def test_they_are_the_published_architectures(name: str, count: int) -> None:
    assert parameters(published_denoiser(name)) == count


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
    model = Model(family=name, base="published")
    denoiser = published_denoiser(name)
    found = family(model).add_lora(denoiser, Lora(rank=rank, alpha=rank), seed=0)
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
    denoiser = published_denoiser(name)
    found = sum(
        layer.weight.numel()
        for path, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear) and path.endswith(Lora().targets)
    )
    assert found == changed
    assert 2 * (parameters(denoiser) + found) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def inputs(name: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One sample at 1024 pixels, FLUX with all 512 tokens."""
    if name == "sdxl":
        text = {"prompt_embeds": torch.zeros(1, 77, 2048), "pooled_prompt_embeds": torch.zeros(1, 1280)}
        return torch.zeros(1, 4, 128, 128), torch.zeros(1).long(), text | {"time_ids": torch.zeros(1, 6)}
    text = {"prompt_embeds": torch.ones(1, 512, 4096), "pooled_prompt_embeds": torch.zeros(1, 768)}
    return torch.zeros(1, 16, 128, 128), torch.zeros(1), text | {"guidance": torch.zeros(1)}


@pytest.mark.parametrize(("name", "teraflop"), [("sdxl", 6.76), ("flux", 74.4)])
def test_a_forward_at_1024_pixels_costs_what_was_counted(name: str, teraflop: float) -> None:
    x_t, timestep, conditioning = inputs(name)

    class OnMeta(nn.Module):
        """Counts the denoiser on meta tensors while `predict` looks at real ones."""

        def __init__(self) -> None:
            super().__init__()
            self.denoiser = published_denoiser(name)

        def forward(self, *arguments: object, **keywords: object) -> tuple[Tensor, ...]:
            return self.denoiser(*map(_on_meta, arguments), **{key: _on_meta(value) for key, value in keywords.items()})

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = family(Model(family=name, base="published")).predict(OnMeta(), x_t, timestep, conditioning)
    assert output.shape == x_t.shape
    assert counter.get_total_flops() / 1e12 == pytest.approx(teraflop, rel=0.01)


def _on_meta(value: object) -> object:
    if isinstance(value, dict):
        return {key: _on_meta(entry) for key, entry in value.items()}
    return value.to("meta") if isinstance(value, Tensor) else value


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # Per number of the latent six float16 and one float32, so 16 bytes; text in float16.
        ("sdxl", 16 * 4 * 128 * 128 + 2 * (77 * 2048 + 1280)),
        ("flux", 16 * 16 * 128 * 128 + 2 * (512 * 4096 + 768)),
    ],
)
def test_a_row_of_targets_takes_this_much(name: str, size: int) -> None:
    x_t, _, conditioning = inputs(name)
    text = conditioning["prompt_embeds"].numel() + conditioning["pooled_prompt_embeds"].numel()
    assert target_row_bytes(x_t.numel(), text) == size
    assert {"sdxl": 1.3e6, "flux": 8.4e6}[name] == pytest.approx(size, rel=0.06)

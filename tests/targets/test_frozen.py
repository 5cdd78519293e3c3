"""θ1 beside the reference: weights held once, compiled blocks, 8 bits and what they cost, and a VAE for float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from support.tiny_training import conditioning, unpadded, write_base
from torch import Tensor, nn

from cpo_ray.config import ConfigError, Model
from cpo_ray.config.registry import FAMILIES
from cpo_ray.models import family
from cpo_ray.models.float8 import Float8Linear
from cpo_ray.objectives import ExpertDifferences, direction_cosine
from cpo_ray.targets.expert import ExpertSpec, frozen_inputs
from cpo_ray.targets.frozen import place_together
from cpo_ray.targets.store import frozen_fingerprint

EACH_FAMILY = pytest.mark.parametrize("name", FAMILIES.names)


def inputs(model: Model, batch: int, tokens: int = 5) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    text = conditioning(model, batch)
    if unpadded(model):
        text["prompt_embeds"] = torch.randn(batch, tokens, text["prompt_embeds"].shape[-1])
    timestep = family(model).load_process(model).timestep(torch.rand(batch, dtype=torch.float64))
    return torch.randn(batch, 4, 8, 8), timestep, text


def test_what_the_adapter_left_alone_is_held_once_and_nothing_else_changes(expert_spec: ExpertSpec) -> None:
    found, model = family(expert_spec.model), expert_spec.model
    reference, theta = found.load_denoiser(model), found.load_denoiser(model, expert_spec.adapter)
    before = {name: values.clone() for name, values in theta.named_parameters()}
    place_together(reference, theta, torch.device("cpu"))
    places = {values.data_ptr() for values in reference.parameters()}
    own = [name for name, values in theta.named_parameters() if values.data_ptr() not in places]
    assert own == [name for name in before if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))]
    assert all(torch.equal(values, before[name]) for name, values in theta.named_parameters())
    assert not torch.equal(reference.get_parameter(own[0]), before[own[0]])


@EACH_FAMILY
def test_compiled_blocks_are_whole_graphs_and_few(name: str, tmp_path: Path) -> None:
    """Traced as for a GPU, and run as they are: each graph is one compilation of a minute there."""
    model = write_base(tmp_path / "base", name)
    found, graphs = family(model), 0

    def backend(graph: Any, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        forward: Callable[..., Any] = graph.forward
        return forward

    compiled, plain = found.load_denoiser(model), found.load_denoiser(model)
    found.compile_blocks(compiled, backend)
    made = []
    for batch, tokens in ((8, 5), (3, 7), (8, 9)):
        with torch.no_grad():
            values = inputs(model, batch, tokens)
            assert torch.equal(found.predict(compiled, *values), found.predict(plain, *values))
        made.append(graphs)
    # SDXL: two widths at each batch size. FLUX.1: two kinds of blocks, and then whatever length the texts have.
    assert made == {"sdxl": [2, 4, 4], "flux": [3, 6, 6]}[name]


def test_a_linear_layer_in_8_bits_is_off_by_their_rounding() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 128, bias=False).bfloat16()
    linear.weight.data[3] *= 100  # an output has a scale of its own
    values = torch.randn(40, 256).bfloat16()
    values[1] *= 1e-3  # and so has a token
    exact, found = linear(values).float(), Float8Linear(linear)(values).float()
    error = found - exact
    # Three bits behind the point: off by 2^-4 of itself at most and by 0.026 in the mean square, weights and inputs alike.
    for dimension, ordinary in ((0, slice(None)), (1, slice(4, None))):
        relative = error[:, ordinary].norm(dim=dimension) / exact[:, ordinary].norm(dim=dimension)
        assert relative.min() > 0.015 and relative.max() < 0.07


@EACH_FAMILY
def test_the_linear_layers_of_the_blocks_and_no_modulation_get_8_bits(name: str, tmp_path: Path) -> None:
    model = write_base(tmp_path / "base", name).model_copy(update={"dtype": "bfloat16"})
    found = family(model)
    denoiser, plain = found.load_denoiser(model), found.load_denoiser(model)
    found.use_float8(denoiser)
    replaced = [path for path, module in denoiser.named_modules() if isinstance(module, Float8Linear)]
    assert replaced and all("blocks." in path and "norm" not in path for path in replaced)
    x_t, timestep, text = inputs(model, 2)
    with torch.no_grad():
        exact, rough = (found.predict(each, x_t.bfloat16(), timestep, text).float() for each in (plain, denoiser))
    error = float((rough - exact).norm() / exact.norm())
    assert 1e-3 < error < 0.2


def differences(generator: torch.Generator) -> ExpertDifferences:
    return ExpertDifferences.from_outputs(*(torch.randn(3, 4, 8, 8, generator=generator) for _ in range(5)))


def test_the_cosine_of_the_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    exact, other = differences(generator), differences(generator)
    torch.testing.assert_close(direction_cosine(exact, exact, 2.0, 2.0), torch.ones(3, dtype=torch.float64))
    turned = replace(exact, positive_minus_all=-exact.positive_minus_all, negative_minus_null=-exact.negative_minus_null)
    torch.testing.assert_close(direction_cosine(turned, exact, 2.0, 2.0), -torch.ones(3, dtype=torch.float64))
    one, two = (each.contrast(2.0, 3.0).flatten(1).double().numpy() for each in (other, exact))
    by_hand = [first @ second / (first @ first * (second @ second)) ** 0.5 for first, second in zip(one, two, strict=True)]
    assert direction_cosine(other, exact, 2.0, 3.0).tolist() == pytest.approx(by_hand)


def write_vae(folder: Path, model: Model, scale: float) -> Path:
    vae = AutoencoderKL.from_pretrained(model.base, subfolder="vae")
    vae.register_to_config(scaling_factor=scale)
    vae.save_pretrained(folder)
    return folder


def test_another_vae_computes_in_float16_and_must_have_the_bases_scale(tmp_path: Path) -> None:
    model = write_base(tmp_path / "base")
    found, cpu, pictures = family(model), torch.device("cpu"), torch.rand(2, 3, 32, 32) * 2 - 1
    base = found.load_encoders(model, cpu)
    scale = AutoencoderKL.load_config(model.base, subfolder="vae")["scaling_factor"]
    half = found.load_encoders(model, cpu, write_vae(tmp_path / "half", model, scale))
    exact, latents = base.encode_pictures(pictures), half.encode_pictures(pictures)
    assert latents.dtype == torch.float32
    assert 0 < float((latents - exact).norm() / exact.norm()) < 1e-2
    with pytest.raises(ConfigError, match=r"scaling_factor = 0\.5, the base's has"):
        found.load_encoders(model, cpu, write_vae(tmp_path / "other", model, 0.5))


def test_what_changes_outputs_changes_the_address_and_nothing_else_does(expert_spec: ExpertSpec, tmp_path: Path) -> None:
    half = replace(expert_spec, model=expert_spec.model.model_copy(update={"dtype": "bfloat16"}))
    vae = write_vae(tmp_path / "vae", expert_spec.model, 1.0)
    specs = [expert_spec, half, replace(expert_spec, compile=True), replace(half, float8=True), replace(expert_spec, vae=vae)]
    assert len({frozen_fingerprint(frozen_inputs(spec)) for spec in specs}) == len(specs)
    assert frozen_inputs(replace(expert_spec, offload_text_encoders=True)) == frozen_inputs(expert_spec)
    supervised = replace(expert_spec, kind="supervised", adapter=None)
    assert frozen_inputs(replace(supervised, compile=True)) == frozen_inputs(supervised)  # no denoiser takes part
    with pytest.raises(ValueError, match=r"targets\.float8 with model\.dtype = 'float32'"):
        replace(expert_spec, float8=True)

"""Adapters under the names of the original code, read back by diffusers' loaders and by ComfyUI's rule, with equal outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file
from support.tiny_training import write_base
from support.trained import Trained, trained
from torch import Tensor

from cpo_ray.config import Lora, Model
from cpo_ray.models import family
from cpo_ray.models.adapters.formats import LayerPlace, original_layers
from cpo_ray.training.artifacts.export import probe_output

EVERYTHING = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "net.0.proj", "net.2", "conv1", "conv2", "time_emb_proj")


def place(found: Any, config: Any, module: str) -> LayerPlace:
    """Where a layer lies in the original code, which only families of diffusers know."""
    answer: LayerPlace = found.original_place(config, module)
    return answer


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return write_base(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return write_base(tmp_path_factory.mktemp("flux"), "flux")


def written(t: Trained, folder: Path) -> dict[str, dict[str, Tensor]]:
    family(t.model).save_other_formats(t.denoiser, t.state, folder)
    return {name: load_file(folder / f"{name}.safetensors") for name in ("kohya", "comfyui")}


def assert_same_output(t: Trained, denoiser: Any) -> None:
    """The loaded denoiser does what the trained one does, and the adapter does something."""
    found, probe = family(t.model), t.probe
    output = probe_output(found, denoiser, probe.x_t, probe.timestep, probe.conditioning)
    base = probe_output(found, found.load_denoiser(t.model), probe.x_t, probe.timestep, probe.conditioning)
    assert (output - base).norm() > 0.01 * base.norm()
    assert (output - probe.output).norm() < 1e-3 * (output - base).norm()


def test_factors_and_alpha_by_hand() -> None:
    """Two layers, of which one is fused with a third that has no adapter: scale 0.5 of rank 1, and of the summed rank."""
    layers = {"a.lora_A.weight": torch.tensor([[1.0, 2.0]]), "a.lora_B.weight": torch.tensor([[3.0]]),
              "k.lora_A.weight": torch.tensor([[1.0, 0.0]]), "k.lora_B.weight": torch.tensor([[5.0], [6.0]]),
              "q.lora_A.weight": torch.tensor([[0.0, 1.0]]), "q.lora_B.weight": torch.tensor([[7.0]])}  # fmt: skip
    places = {"a": LayerPlace("alone", ("a",)), **dict.fromkeys("qk", LayerPlace("qkv", ("q", "k", "v")))}
    found = original_layers(layers, 0.5, places.__getitem__, {"v": 2}.__getitem__)
    assert {name: tensor.tolist() for name, tensor in found["alone"].items()} == {
        "lora_down.weight": [[1, 2]],
        "lora_up.weight": [[3]],
        "alpha": 0.5,
    }
    assert {name: tensor.tolist() for name, tensor in found["qkv"].items()} == {
        "lora_down.weight": [[0, 1], [1, 0]],
        "lora_up.weight": [[7, 0], [0, 5], [0, 6], [0, 0], [0, 0]],
        "alpha": 1.0,
    }


def test_kohyas_sdxl_names_are_those_of_the_published_scripts() -> None:
    """Names that kohya's SDXL adapters have, of the real UNet."""
    found = family(model := Model(family="sdxl", base="published"))
    config = found.skeleton(model).denoiser.config
    for ours, theirs in {
        "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": "input_blocks.4.1.transformer_blocks.1.attn1.to_q",
        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj": "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj",
        "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
        "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0": "output_blocks.2.1.transformer_blocks.0.attn2.to_out.0",
        "up_blocks.1.attentions.0.proj_out": "output_blocks.3.1.proj_out",
        "up_blocks.2.resnets.2.conv1": "output_blocks.8.0.in_layers.2",
        "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    }.items():
        assert place(found, config, ours) == LayerPlace(theirs, (ours,))


def test_every_sdxl_weight_has_the_original_codes_name(sdxl: Model) -> None:
    """diffusers' own converter of original checkpoints takes a UNet under our names back to what it was."""
    unet: Any = family(sdxl).load_denoiser(sdxl)
    weights = {name: value for name, value in unet.state_dict().items() if "norm" not in name}
    original = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        original[f"model.diffusion_model.{place(family(sdxl), unet.config, module).path}.{kind}"] = value
    back = convert_ldm_unet_checkpoint(original, dict(unet.config))
    assert len(original) == len(weights) and all(torch.equal(back[name], value) for name, value in weights.items())


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=16), Lora(rank=4, alpha=0.4, targets=EVERYTHING[:7])])
def test_kohyas_form_of_sdxl_goes_through_diffusers_own_loader(sdxl: Model, tmp_path: Path, lora: Lora) -> None:
    t = trained(sdxl, 0.1, lora)
    kohya = written(t, tmp_path)["kohya"]
    assert kohya["lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.alpha"] == pytest.approx(lora.alpha)
    pipeline = family(sdxl).load_pipeline(sdxl)
    pipeline.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    assert_same_output(t, pipeline.unet)


def test_comfyuis_form_of_sdxl_by_comfyuis_rule(sdxl: Model, tmp_path: Path) -> None:
    """ComfyUI adds alpha / rank · up down to the weight of that name in the original checkpoint."""
    t = trained(sdxl, 0.1, Lora(rank=4, alpha=8, targets=EVERYTHING))
    comfyui = written(t, tmp_path)["comfyui"]
    unet: Any = family(sdxl).load_denoiser(sdxl)
    places = {place(family(sdxl), unet.config, n).path: n for n, m in unet.named_modules() if n.endswith(EVERYTHING)}
    for name in {key.rpartition(".lora_up")[0] for key in comfyui if "lora_up" in key}:
        up, down = comfyui[f"{name}.lora_up.weight"], comfyui[f"{name}.lora_down.weight"]
        weight = unet.get_submodule(places.pop(name.removeprefix("diffusion_model."))).weight
        weight.data += comfyui[f"{name}.alpha"] / len(down) * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    assert not places, "every adapted layer is in the file"
    assert_same_output(t, unet)


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_both_forms_of_flux_go_through_diffusers_own_loader(flux: Model, tmp_path: Path, form: str) -> None:
    """The loader cuts single blocks at FLUX.1's own widths, so the tiny one has its adapter on the double blocks here."""
    targets = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_out.0", "ff.net.2", "norm1.linear")
    t = trained(flux, 0.1, Lora(rank=4, alpha=8, targets=targets))
    written(t, tmp_path)
    pipeline = family(flux).load_pipeline(flux)
    pipeline.load_lora_weights(tmp_path, weight_name=f"{form}.safetensors")
    assert_same_output(t, pipeline.transformer)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [3, 4])  # diffusers cuts a fused layer in another way where its rank is a multiple of the parts
def test_the_real_fluxs_blocks_come_back_with_equal_updates(rank: int, tmp_path: Path) -> None:
    """At FLUX.1's widths: every update B A, and none where the adapter has none."""
    found = family(model := Model(family="flux", base="published"))
    denoiser = found.skeleton(model).denoiser
    names = found.add_lora(denoiser, Lora(rank=rank, alpha=0.1 * rank), seed=0)
    generator = torch.Generator().manual_seed(0)
    kept = [name for name in names if name.startswith(("transformer_blocks.7.", "single_transformer_blocks.30."))]
    state = {name: torch.randn(denoiser.get_parameter(name).shape, generator=generator) for name in kept}
    found.save_other_formats(denoiser, state, tmp_path)
    expected = {name.partition(".lora_")[0]: 0.1 * _update(state, name) for name in kept if "lora_A" in name}
    for form in ("kohya", "comfyui"):
        loaded = FluxPipeline.lora_state_dict(load_file(tmp_path / f"{form}.safetensors"))
        updates = {name.split(".", 1)[1].partition(".lora_")[0]: _update(loaded, name) for name in loaded if "lora_A" in name}
        for module, update in expected.items():
            torch.testing.assert_close(updates.pop(module), update, rtol=1e-4, atol=1e-5)
        assert set(updates) == {"single_transformer_blocks.30.proj_mlp"} and not any(u.any() for u in updates.values())


def _update(factors: dict[str, Tensor], name: str) -> Tensor:
    return factors[name.replace("lora_A", "lora_B")] @ factors[name]

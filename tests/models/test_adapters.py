"""Adapters as people have them: each format gives the trained output, and anything else is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_training import write_base
from support.trained import Trained, trained
from torch import Tensor

from cpo_ray.config import Lora, Model
from cpo_ray.models import family
from cpo_ray.models.adapters.keys import AdapterError
from cpo_ray.training.artifacts.export import probe_output

WEIGHTS = "pytorch_lora_weights.safetensors"
Tensors = dict[str, Tensor]
#: A scale of two, and layers that FLUX's original code fuses, not all of each.
LORAS = {"sdxl": Lora(rank=4, alpha=8, targets=("to_q", "to_out.0", "proj_in", "conv1")), "flux": Lora(rank=4, alpha=8)}


@pytest.fixture(scope="module", params=LORAS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """A trained denoiser, and our own three exports of its adapter."""
    model = write_base(tmp_path_factory.mktemp("base"), request.param)
    t, folder = trained(model, 0.1, LORAS[request.param]), tmp_path_factory.mktemp("adapter")
    family(model).save_adapter(t.denoiser, t.state, folder)
    family(model).save_other_formats(t.denoiser, t.state, folder / "formats")
    return t, folder


def assert_loads(t: Trained, adapter: Path) -> None:
    """Merged into the denoiser, and beside the weights of a pipeline's."""
    found, probe = family(t.model), t.probe
    pipeline: Any = found.load_pipeline(t.model, adapter)
    for denoiser in (found.load_denoiser(t.model, adapter), getattr(pipeline, found.denoiser)):
        output = probe_output(found, denoiser, probe.x_t, probe.timestep, probe.conditioning)
        torch.testing.assert_close(output, probe.output, rtol=1e-4, atol=1e-5)
    assert "is a LoRA of" in (told := found.check_adapter(t.model, adapter, Path(t.model.base))) and "scaled by 2" in told


def renamed(tensors: Tensors, layer: Callable[[str], str], down: str, up: str) -> Tensors:
    """diffusers' tensors under other names."""
    found = {}
    for name, tensor in tensors.items():
        module, _, factor = name.partition(".lora_")
        found[layer(module.partition(".")[2]) + (down if factor == "A.weight" else up)] = tensor
    return found


def with_alphas(tensors: Tensors, down: str, alpha: float = 8.0) -> Tensors:
    return tensors | {name.replace(down, ".alpha"): torch.tensor(alpha) for name in tensors if name.endswith(down)}


def test_our_own_exports(exported: tuple[Trained, Path]) -> None:
    t, folder = exported
    for path in (folder, folder / WEIGHTS, folder / "formats" / "kohya.safetensors", folder / "formats" / "comfyui.safetensors"):
        assert_loads(t, path)


def test_merged_weights_are_those_of_diffusers_own_loader_bit_by_bit(exported: tuple[Trained, Path]) -> None:
    t, folder = exported
    found: Any = family(t.model)
    denoiser = found.load_denoiser(t.model)
    state, *_, metadata = found.pipeline_class.lora_state_dict(folder, return_lora_metadata=True)
    denoiser.load_lora_adapter(state, prefix=found.denoiser, metadata=metadata)
    denoiser.fuse_lora()
    denoiser.unload_lora()
    ours = found.load_denoiser(t.model, folder).state_dict()
    assert ours.keys() == denoiser.state_dict().keys()
    assert all(torch.equal(ours[name], value) for name, value in denoiser.state_dict().items())


def test_formats_of_other_programs(exported: tuple[Trained, Path], tmp_path: Path) -> None:
    t, folder = exported
    tensors, prefix = load_file(folder / WEIGHTS), family(t.model).denoiser

    def kohya(module: str) -> str:
        return f"lora_{'unet' if prefix == 'unet' else 'transformer'}_{module.replace('.', '_')}"

    forms = {
        "kohya under diffusers' names": with_alphas(
            renamed(tensors, kohya, ".lora_down.weight", ".lora_up.weight"), ".lora_down.weight"
        ),
        "older diffusers": with_alphas(
            renamed(tensors, f"{prefix}.{{}}".format, ".lora.down.weight", ".lora.up.weight"), ".lora.down.weight"
        ),
        "ComfyUI under diffusers' names": with_alphas(
            renamed(tensors, "diffusion_model.{}".format, ".lora_A.weight", ".lora_B.weight"), ".lora_A.weight"
        ),
    }
    for name, form in forms.items():
        save_file(form, file := tmp_path / f"{name}.safetensors")
        assert_loads(t, file)


@pytest.mark.parametrize("settings", [{"lora_alpha": 8}, {"lora_alpha": 4, "use_rslora": True}])
def test_peft_with_its_settings(exported: tuple[Trained, Path], tmp_path: Path, settings: dict[str, Any]) -> None:
    t, folder = exported
    form = renamed(load_file(folder / WEIGHTS), "base_model.model.{}".format, ".lora_A.weight", ".lora_B.weight")
    save_file(form, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4} | settings))
    assert_loads(t, tmp_path)


def test_layers_of_other_rank_and_alpha(exported: tuple[Trained, Path], tmp_path: Path) -> None:
    """One layer has half of the rank twice over, which is the same update, and an alpha of its own."""
    t, folder = exported
    tensors, prefix = load_file(folder / WEIGHTS), family(t.model).denoiser
    form = with_alphas(renamed(tensors, f"{prefix}.{{}}".format, ".lora_down.weight", ".lora_up.weight"), ".lora_down.weight")
    first = min(name for name in form if name.endswith(".alpha")).removesuffix(".alpha")
    for factor, dimension in (("down", 0), ("up", 1)):
        name = f"{first}.lora_{factor}.weight"
        form[name] = torch.cat([form[name], form[name]], dimension)
    form[f"{first}.alpha"] = torch.tensor(8.0)  # scale 1 of twice the update
    save_file(form, tmp_path / "mixed.safetensors")
    found = family(t.model)
    output = probe_output(
        found, found.load_denoiser(t.model, tmp_path / "mixed.safetensors"), t.probe.x_t, t.probe.timestep, t.probe.conditioning
    )
    torch.testing.assert_close(output, t.probe.output, rtol=1e-4, atol=1e-5)


LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def added(**tensors: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda given: given | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


ONE = torch.ones(1)
ELSEWHERE = {"transformer__x__lora_A__weight": ONE, "transformer__x__lora_B__weight": ONE.clone()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (added(lora_te1_text_model__alpha=ONE), "also changes a text encoder"),
        (added(text_encoder_2__x__lora_A__weight=ONE), "also changes a text encoder"),
        (added(**{"unet__conv_in__lokr_w1": ONE}), "it is LoKr"),
        (added(**{"unet__conv_in__hada_w1_a": ONE}), "it is LoHa"),
        (added(**{"unet__conv_in__dora_scale": ONE}), "it is DoRA"),
        (added(**{"unet__conv_in__lora_magnitude_vector": ONE}), "it is DoRA"),
        (added(**{"unet__conv_in__diff": ONE}), "has a tensor unet.conv_in.diff, which is not one of a LoRA"),
        (
            added(**{"transformer__x__lora_A__weight": ONE, "transformer__x__lora_B__weight": ONE.clone()}),
            "no layer transformer.x",
        ),
        (added(**{"unet__conv_in__lora_A__weight": ONE}), "has only one of a LoRA's two factors"),
        (lambda given: given | {f"{LAYER}.lora_A.weight": torch.ones(4, 3)}, "it is for another model"),
        (lambda given: given | {f"{LAYER}.lora_B.weight": given[f"{LAYER}.lora_B.weight"] * torch.nan}, "not finite"),
        (lambda given: {name: torch.zeros_like(tensor) for name, tensor in given.items()}, "changes nothing: every update"),
        (lambda given: {}, "it holds no tensors"),
    ],
)
def test_what_is_not_a_lora_of_this_base_is_refused_in_one_sentence(
    sdxl: tuple[Model, Path], tmp_path: Path, change: Callable[[Tensors], Tensors], expected: str
) -> None:
    model, folder = sdxl
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(folder / WEIGHTS)), tmp_path / WEIGHTS, metadata)
    for load in (family(model).load_denoiser, lambda m, a: family(m).check_adapter(m, a, Path(m.base))):
        with pytest.raises(AdapterError) as told:
            load(model, tmp_path)
        assert expected in str(told.value) and "\n" not in str(told.value)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    model = write_base(tmp_path_factory.mktemp("sdxl"))
    t, folder = trained(model, 0.1, Lora(rank=4, alpha=8)), tmp_path_factory.mktemp("adapter")
    family(model).save_adapter(t.denoiser, t.state, folder)
    return model, folder


def test_a_file_that_lost_its_alpha_is_refused_until_somebody_says_it(sdxl: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = sdxl
    save_file(load_file(folder / WEIGHTS), tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match=r"does not say its alpha, .* as adapter_config.json: ..lora_alpha.: 4"):
        family(model).load_denoiser(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    ours, theirs = (family(model).load_denoiser(model, path).state_dict() for path in (tmp_path, folder))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_merge_that_the_precision_swallows_is_an_error(sdxl: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = sdxl
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    small = {name: tensor * (1e-12 if "lora_B" in name else 1) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(small, tmp_path / WEIGHTS, metadata)
    with pytest.raises(AdapterError, match=r"changes no weight: its updates are smaller than what the denoiser's torch.bfloat16"):
        family(model).load_denoiser(model.model_copy(update={"dtype": "bfloat16"}), tmp_path)


def test_a_pickle_is_never_opened(sdxl: tuple[Model, Path], tmp_path: Path) -> None:
    model, _ = sdxl
    for name in ("pytorch_lora_weights.bin", "adapter.pt"):
        (folder := tmp_path / name.replace(".", "-")).mkdir()
        (folder / name).write_bytes(b"\x80\x04.")
        for path in (folder, folder / name):
            with pytest.raises(AdapterError, match="a pickle, which can run code and is never opened"):
                family(model).load_denoiser(model, path)
    (tmp_path / "renamed.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterError, match="is a pickle"):
        family(model).load_denoiser(model, tmp_path / "renamed.safetensors")


def test_a_folder_names_one_adapter(sdxl: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = sdxl
    with pytest.raises(AdapterError, match="there is nothing at"):
        family(model).check_adapter(model, tmp_path / "nowhere", None)
    with pytest.raises(AdapterError, match=r"has no .safetensors file"):
        family(model).check_adapter(model, tmp_path, None)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes((folder / WEIGHTS).read_bytes())
    with pytest.raises(AdapterError, match=r"has 2 adapters \(a.safetensors, b.safetensors\); name one file"):
        family(model).check_adapter(model, tmp_path, None)

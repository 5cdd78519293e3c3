"""What people have as a base: a broken one is refused in one sentence, and one in half precision is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from support.tiny_training import write_base

from cpo_ray.config import ConfigError, Model, load
from cpo_ray.models import family
from cpo_ray.models.bases import hub
from cpo_ray.models.bases.single_file import unpack
from cpo_ray.models.bases.source import base_source, is_hub_id, local_base
from cpo_ray.models.bases.weights import variant_among

ROOT = Path(__file__).parents[2]
UNET = "unet/diffusion_pytorch_model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5135149760\n"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {name: write_base(tmp_path_factory.mktemp(name), name) for name in ("sdxl", "flux")}


def copied(model: Model, folder: Path) -> Model:
    return model.model_copy(update={"base": str(shutil.copytree(model.base, folder / "base"))})


def changed(part: str, **values: Any) -> Callable[[Path], None]:
    """Change settings of a part's configuration."""

    def change(base: Path) -> None:
        file = base / part
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(base: Path) -> None:
        (base / name).write_text(text)

    return write


def removed(name: str) -> Callable[[Path], None]:
    return lambda base: shutil.rmtree(base / name) if (base / name).is_dir() else (base / name).unlink()


def pickled(name: str) -> Callable[[Path], None]:
    def rename(base: Path) -> None:
        (base / name).rename((base / name).with_suffix(".bin"))

    return rename


def cut(base: Path) -> None:
    data = (base / UNET).read_bytes()
    (base / UNET).write_bytes(data[: len(data) // 2])


def sharded_without_a_shard(base: Path) -> None:
    (base / UNET).unlink()
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (base / f"{UNET}.index.json").write_text(json.dumps(index))


def without_a_tensor(base: Path) -> None:
    weights = load_file(base / UNET)
    del weights["conv_in.weight"]
    save_file(weights, base / UNET)


SCHEDULER, VAE, TOKENIZER = "scheduler/scheduler_config.json", "vae/config.json", "tokenizer/tokenizer_config.json"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (removed("model_index.json"), "has no model_index.json"),
        (written("model_index.json", "<!DOCTYPE html><p>503"), "is a web page, not JSON"),
        (written("model_index.json", ""), "is empty, not JSON"),
        (changed("model_index.json", _class_name="StableDiffusionPipeline"), "holds a StableDiffusionPipeline"),
        (changed("model_index.json", vae=["diffusers", "AutoencoderTiny"]), "names diffusers's AutoencoderTiny as vae"),
        (removed("unet"), "lacks unet/"),
        (removed("tokenizer_2"), "lacks tokenizer_2/"),
        (removed("unet/config.json"), "has no config.json"),
        (written("unet/config.json", "{"), "is damaged, not JSON"),
        (removed(UNET), "has no diffusion_pytorch_model.safetensors"),
        (written(UNET, POINTER), "is a pointer of git-lfs (run git lfs pull)"),
        (written("text_encoder/model.safetensors", "<html>"), "is a web page, not a safetensors file"),
        (cut, "is cut: it has"),
        (sharded_without_a_shard, "lacks diffusion_pytorch_model-00001-of-00002.safetensors"),
        (without_a_tensor, "lack conv_in.weight, which its config.json asks for"),
        (changed("unet/config.json", in_channels=9), "conv_in.weight in"),
        (pickled(UNET), "only as diffusion_pytorch_model.bin; pickles can run code and are never opened"),
        (pickled("vae/diffusion_pytorch_model.safetensors"), "pickles can run code"),
        (pickled("text_encoder_2/model.safetensors"), "pickles can run code"),
        (changed(SCHEDULER, _class_name="EDMDPMSolverMultistepScheduler"), "names EDMDPMSolverMultistepScheduler"),
        (changed(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"), "names FlowMatchEulerDiscreteScheduler"),
        (changed(SCHEDULER, use_flow_sigmas=True), "asks for a flow or EDM"),
        (changed(SCHEDULER, prediction_type="epsilon"), "zero terminal SNR cannot be trained with 'epsilon'"),
        (changed(SCHEDULER, prediction_type="sample"), "prediction_type is 'sample'"),
        (changed(SCHEDULER, beta_schedule="unknown"), "cannot be loaded: NotImplementedError"),
        (changed(VAE, latents_mean=[0.0] * 4, latents_std=[1.0] * 4), "has latents_mean"),
        (changed(TOKENIZER, model_max_length=10**30), "tokenizer says nothing as model_max_length"),
        (changed(TOKENIZER, model_max_length=77), "tokenizer says 77 as model_max_length, and its text encoder takes 48 tokens"),
        (written("tokenizer/tokenizer.json", "{"), "cannot be loaded"),
    ],
)
def test_a_broken_base_is_refused_in_one_sentence(
    bases: dict[str, Model], tmp_path: Path, fault: Callable[[Path], None], expected: str
) -> None:
    model = copied(bases["sdxl"], tmp_path)
    fault(Path(model.base))
    with pytest.raises(ConfigError) as told:
        family(model).check_base(model, Path(model.base))
    assert expected in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_base_with_half_precision_only_is_loaded_and_told(bases: dict[str, Model], tmp_path: Path, name: str) -> None:
    plain, half = bases[name], copied(bases[name], tmp_path)
    found = family(half)
    for file in Path(half.base).glob("*/*.safetensors"):
        save_file({key: value.half() for key, value in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
        if file.parent.name != "vae":  # a base may have both
            file.unlink()
    (note,) = found.check_base(half, Path(half.base))
    assert found.denoiser in note and "variant 'fp16' only, which is loaded" in note and "vae" not in note
    weights: Any = found.load_denoiser(half)
    for key, value in found.load_denoiser(plain).state_dict().items():
        torch.testing.assert_close(weights.state_dict()[key], value.half().float())
    (Path(half.base) / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    encoders = found.load_encoders(half, torch.device("cpu"))
    assert encoders.encode_prompts(["red circle"]) and encoders.encode_pictures(torch.zeros(1, 3, 32, 32)).isfinite().all()
    pipeline = found.load_pipeline(half)
    assert next(pipeline.vae.parameters()).dtype == torch.float32


def test_flux_takes_the_schedulers_of_flows(bases: dict[str, Model], tmp_path: Path) -> None:
    model = copied(bases["flux"], tmp_path)
    assert family(model).check_base(model, Path(model.base)) == []
    changed(SCHEDULER, _class_name="DDIMScheduler")(Path(model.base))
    with pytest.raises(ConfigError, match="names DDIMScheduler, whose schedule flux is not trained on"):
        family(model).load_process(model.model_copy(update={"flow": model.flow.model_copy(update={"shift": 1.0})}))


def test_a_path_with_a_mistake_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for base in ("models/sd_xl.safetensors", "models/sdxl", "somebody/model.ckpt", "./nowhere", "/nowhere", "~/nowhere", "sdxl"):
        assert not is_hub_id(base)
        with pytest.raises(ConfigError, match=f"there is no folder {base}; give a folder saved by diffusers or a hub id"):
            base_source(Model(family="sdxl", base=base))
    assert is_hub_id("stabilityai/stable-diffusion-xl-base-1.0") and is_hub_id("black-forest-labs/FLUX.1-dev")
    (tmp_path / "sdxl.safetensors").write_bytes(b"")
    with pytest.raises(
        ConfigError,
        match="is a single file; a base is a folder",
    ):
        base_source(Model(family="sdxl", base="sdxl.safetensors"))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("sd.ckpt", b"PK", "is a pickle, which can run code and is never opened"),
        ("sd.safetensors", POINTER.encode(), "is a pointer of git-lfs"),
        ("sd.safetensors", b"PK\x03\x04 and so on", "is a pickle, which can run code and is never opened"),
    ],
)
def test_a_single_file_is_not_opened_blindly(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(data)
    config = load(ROOT / "jobs" / "configs" / "toy.toml", [f"model.base={tmp_path / name}"])
    with pytest.raises(ConfigError, match=expected):
        unpack(config, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_an_unpacked_base_is_one(bases: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' own reader needs the hub's configurations, so another stands in for it; the rest is as it is."""
    save_file({"model.diffusion_model.x": torch.zeros(1)}, file := tmp_path / "sd.safetensors")
    whole = StableDiffusionXLPipeline.from_pretrained(bases["sdxl"].base)
    monkeypatch.setattr("diffusers.StableDiffusionXLPipeline.from_single_file", lambda *_, **__: whole)
    config = load(ROOT / "jobs" / "configs" / "toy.toml", [f"model.base={file}"])
    unpack(config, tmp_path / "base")
    assert family(config.model).load_denoiser(bases["sdxl"].model_copy(update={"base": str(tmp_path / "base")}))
    with pytest.raises(ConfigError, match="is not empty"):
        unpack(config, tmp_path / "base")


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").mkdir()
    assert local_base(Model(family="sdxl", base="~/base")) == tmp_path / "base"


class Hub:
    """The hub's answers: `model_info` gives or raises what it was made with."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def model_info(self, base: str, **_: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Listed:
    """What the hub says about a base with these files."""

    def __init__(self, *files: str) -> None:
        self.gated, self.sha = False, 40 * "a"
        self.siblings = [type("File", (), {"rfilename": file})() for file in files]


WHOLE = (UNET, "vae/diffusion_pytorch_model.fp16.safetensors")


@pytest.mark.parametrize(
    ("answer", "revision", "expected"),
    [
        (Listed(*WHOLE), None, "model.revision is not set, so nodes may load different weights; pin it: model.revision=aaaa"),
        (Listed(*WHOLE), "main", "is 'main', a branch or tag that can move"),
        (Listed(*WHOLE), 40 * "b", "will be downloaded from the hub by every node"),
        (OSError("no route"), None, "the hub does not answer here: no route"),
        (Listed(UNET), None, "has no vae/ on the hub"),
        (Listed(UNET, "vae/diffusion_pytorch_model.bin"), None, "weights in vae as pickles only"),
    ],
)
def test_what_the_hub_says_is_told(monkeypatch: pytest.MonkeyPatch, answer: Any, revision: str | None, expected: str) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(answer))
    model = Model(family="sdxl", base="somebody/some-model", revision=revision)
    try:
        told = list(hub.look_up(model, ("unet", "vae")))
    except ConfigError as error:
        told = [str(error)]
    assert any(expected in sentence for sentence in told)
    assert any("pin it" in sentence for sentence in told) == (revision != 40 * "b" and "has" not in told[0].split(" on ")[0])


def test_a_base_that_is_not_here_is_refused_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set; download it first: hf download somebody/some-model"):
        list(hub.look_up(Model(family="sdxl", base="somebody/some-model"), ("unet",)))


def test_a_variant_is_taken_where_there_is_nothing_else() -> None:
    stem = "diffusion_pytorch_model"
    assert variant_among([f"{stem}.fp16.safetensors", f"{stem}.safetensors"], stem) is None
    assert variant_among([f"{stem}.non_ema.safetensors", f"{stem}.fp16.safetensors"], stem) == "fp16"
    assert variant_among([f"{stem}.safetensors.index.fp16.json", f"{stem}-00001-of-00002.fp16.safetensors"], stem) == "fp16"
    assert variant_among([f"{stem}.bin"], stem) is None

"""What families have in common whose denoiser diffusers loads and saves: weights, LoRA, exports, the pipeline."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from cpo_ray.config import ConfigError, Lora, Model
from cpo_ray.models.base import DTYPES, base_source
from cpo_ray.models.lora_formats import LayerPlace, write_lora_formats
from cpo_ray.models.skeleton import Configurations, Skeleton, build_skeleton

ADAPTER = "default"
# A block is compiled per width, aspect ratio and batch size; torch gives up after 8.
_SHAPES = 64


class DiffusersFamily:
    """The part of `Family` that differs between architectures by a few names only.

    `denoiser` is the denoiser's folder in a pipeline, and the prefix of its LoRA's keys.
    """

    denoiser: str
    denoiser_class: Any
    pipeline_class: Any
    text_encoder_classes: tuple[Any, ...]
    published: Configurations
    dynamic_shapes: bool | None = False
    """For compiled blocks: False has one program per shape, None lets a dimension vary once it is seen to."""

    def original_place(self, config: Any, module: str) -> LayerPlace:
        """Where a layer of the denoiser lies in the architecture's original code. Raises KeyError for one without a place."""
        raise NotImplementedError

    def skeleton(self, model: Model, folder: Path | None = None) -> Skeleton:
        denoiser = (self.denoiser, self.denoiser_class)
        return build_skeleton(model, folder, self.published, denoiser, self.text_encoder_classes)

    def load_denoiser(self, model: Model, adapter: Path | None = None) -> Any:
        whole = self._is_whole(adapter)
        source, revision = (str(adapter), None) if whole else (base_source(model), model.revision)
        denoiser = self.denoiser_class.from_pretrained(
            source, subfolder=self.denoiser, revision=revision, dtype=DTYPES[model.dtype], use_safetensors=True
        )
        if adapter is not None and not whole:
            state, *_, metadata = self.pipeline_class.lora_state_dict(adapter, return_lora_metadata=True)
            denoiser.load_lora_adapter(state, prefix=self.denoiser, metadata=metadata)
            denoiser.fuse_lora()
            denoiser.unload_lora()
        return denoiser.eval().requires_grad_(False)

    def add_lora(self, denoiser: nn.Module, lora: Lora, seed: int) -> list[str]:
        # The generator's state before and after is not ours: only the seed decides the initial weights.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights=True)
            mixin: Any = denoiser  # diffusers mixes peft's methods into its models
            try:
                mixin.add_adapter(config, adapter_name=ADAPTER)
            except ValueError as error:
                names = list(lora.targets)
                raise ConfigError(f"no layer of the denoiser is named like lora.targets = {names}: {error}") from None
        names = []
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                names.append(name)
        self._check_places(mixin.config, names)
        return names

    def checkpoint_gradients(self, denoiser: nn.Module) -> None:
        mixin: Any = denoiser
        mixin.enable_gradient_checkpointing()

    def compile_blocks(self, denoiser: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
        mixin: Any = denoiser
        limits: Any = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, _SHAPES)
        mixin.compile_repeated_blocks(fullgraph=True, dynamic=self.dynamic_shapes, backend=backend)

    def use_float8(self, denoiser: nn.Module) -> None:
        from cpo_ray.models.float8 import replace_linears  # not every torch that does for the rest has these products

        replace_linears(denoiser, self.denoiser_class._repeated_blocks)

    def save_adapter(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        layers, metadata = _layers(denoiser, state), _metadata(denoiser)
        keywords: dict[str, Any] = {f"{self.denoiser}_lora_layers": layers, f"{self.denoiser}_lora_adapter_metadata": metadata}
        self.pipeline_class.save_lora_weights(folder, **keywords)
        _sort_metadata(folder / "pytorch_lora_weights.safetensors")

    def save_other_formats(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        mixin: Any = denoiser
        lora = mixin.peft_config[ADAPTER]
        write_lora_formats(
            _layers(denoiser, state),
            scale=lora.lora_alpha / lora.r,
            place=lambda module: self.original_place(mixin.config, module),
            outputs=lambda module: mixin.get_submodule(module).out_features,
            folder=folder,
        )

    def save_denoiser(self, model: Model, state: dict[str, Tensor], folder: Path) -> None:
        # Under ZeRO-3 the trained module is empty, so a fresh one carries the weights.
        fresh = self.load_denoiser(model.model_copy(update={"dtype": "float32"}))
        fresh.load_state_dict(state)
        fresh.save_pretrained(folder / self.denoiser)

    def load_pipeline(self, model: Model, adapter: Path | None = None) -> Any:
        whole = {self.denoiser: self.load_denoiser(model, adapter)} if self._is_whole(adapter) else {}
        pipeline = self.pipeline_class.from_pretrained(
            base_source(model), revision=model.revision, dtype=DTYPES[model.dtype], use_safetensors=True, **whole
        )
        if adapter is not None and not whole:
            pipeline.load_lora_weights(adapter)
        return pipeline

    def _is_whole(self, adapter: Path | None) -> bool:
        """Whether an export holds a whole denoiser and not a LoRA."""
        return adapter is not None and (adapter / self.denoiser).is_dir()

    def _check_places(self, config: Any, names: list[str]) -> None:
        """Before training, not after: a layer that other programs have no name for could not be exported to them."""
        for module in sorted({name.partition(".lora_")[0] for name in names}):
            try:
                self.original_place(config, module)
            except KeyError:
                raise ConfigError(f"lora.targets reach {module!r}, which has no name in the kohya and ComfyUI formats") from None


def load_vae(model: Model, device: torch.device, folder: Path | None) -> AutoencoderKL:
    """The base's VAE in float32 (SDXL's overflows in float16), or the one in `folder` in float16, frozen.

    Raises ConfigError for one whose latents have another scale.
    """
    base = AutoencoderKL.load_config(base_source(model), subfolder="vae", revision=model.revision)
    if folder is None:
        source: dict[str, Any] = {"subfolder": "vae", "revision": model.revision, "dtype": torch.float32}
        vae = AutoencoderKL.from_pretrained(base_source(model), **source)
    else:
        vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float16, use_safetensors=True)
        if vae.config.scaling_factor != base["scaling_factor"]:
            raise ConfigError(
                f"the VAE in {folder} scales its latents by {vae.config.scaling_factor}, the base's by {base['scaling_factor']}; "
                "give one of the same latent space"
            )
    return vae.to(device).eval().requires_grad_(False)


def _layers(denoiser: nn.Module, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The adapter's matrices on the CPU, named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    layers = get_peft_model_state_dict(denoiser, state_dict=state, adapter_name=ADAPTER)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in layers.items()}


def _metadata(denoiser: Any) -> dict[str, Any]:
    """What a loader needs beside the weights; without it lora_alpha is lost and the reloaded adapter silently wrong."""
    config = denoiser.peft_config[ADAPTER].to_dict()
    known = inspect.signature(LoraConfig).parameters
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items() if k in known}
    return {k: v for k, v in plain.items() if isinstance(v, str | int | float | bool | list)}


def _sort_metadata(file: Path) -> None:
    """Put the header's metadata in order: safetensors writes it in a random one, and equal adapters must be equal files."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

"""What families on diffusers share: weights, LoRA, exports, the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import LoraConfig
from torch import Tensor, nn

from cpo_ray.config import ConfigError, Lora, Model
from cpo_ray.core.diffusion import DiffusionProcess
from cpo_ray.models.adapters import loading, saving
from cpo_ray.models.adapters.formats import LayerPlace, write_lora_formats
from cpo_ray.models.adapters.keys import layers_of
from cpo_ray.models.adapters.reading import Adapter, read_adapter
from cpo_ray.models.base import DTYPES, Encoders, Tokens
from cpo_ray.models.bases.folder import check_folder, check_names, check_tokenizers
from cpo_ray.models.bases.hub import variant
from cpo_ray.models.bases.source import base_source
from cpo_ray.models.bases.weights import DIFFUSERS, TRANSFORMERS, find_weights
from cpo_ray.models.latents import GaussianLatents, LatentSpace
from cpo_ray.models.skeleton import Configurations, Skeleton, made_in
from cpo_ray.models.tiny import random_text_encoder, tokenizer_for

# A bar for the parts of each pipeline would stand between the lines of a run and of `--check`.
diffusers.utils.logging.disable_progress_bar()

# A block is compiled per width, aspect ratio and batch size. torch's default limit is 8.
_SHAPES = 64


class DiffusersFamily:
    """The part of `Family` that differs between architectures by a few names only.

    `denoiser` is the denoiser's folder in a pipeline, and the prefix of its LoRA's keys. `original_place` says where a layer of
    the denoiser with a given configuration lies in the architecture's original code; KeyError for one without a place.
    """

    name: str
    pipeline: str
    pipeline_class: Any
    denoiser: str
    denoiser_class: Any
    text_encoder_classes: tuple[Any, ...]
    scheduler_class: Any
    schedulers: Sequence[str]
    """The schedulers in diffusers that a base may have, by class; `load_process` reads them all rightly."""
    encoders_class: Callable[[DiffusersFamily, Model, torch.device, Path | None], Encoders]
    tokens_of: Callable[[Any, Model], Tokens]
    load_process: Callable[[Model], DiffusionProcess]
    original_place: Callable[[Any, str], LayerPlace]
    published: Configurations
    licences: Mapping[str, str]
    latents: LatentSpace = GaussianLatents()
    chunked_texts: bool = False
    """Whether `model.text_chunks` has a meaning for it."""
    dynamic_shapes: bool | None = False
    """For compiled blocks: False has one program per shape, None lets a dimension vary once it is seen to."""

    def skeleton(self, model: Model, folder: Path | None = None) -> Skeleton:
        found = self.published if folder is None else self._configurations(folder)
        with made_in(torch.device("meta"), DTYPES[model.dtype]):
            denoiser = self.denoiser_class.from_config(found.denoiser)
            encoders = tuple(
                kind(kind.config_class(**values))
                for kind, values in zip(self.text_encoder_classes, found.text_encoders, strict=True)
            )
        with made_in(torch.device("meta"), torch.float32):
            vae = self.latents.vae_class.from_config(found.vae)
        for each in (denoiser, vae, *encoders):
            each.eval().requires_grad_(False)
        return Skeleton(denoiser, vae, encoders, self.text_tokens(model, encoders), self.latents)

    def _configurations(self, folder: Path) -> Configurations:
        """Read those of the models in a pipeline's folder."""
        named = zip(self.text_encoder_classes, self.text_encoder_names, strict=True)
        texts = (kind.config_class.from_pretrained(folder / name).to_dict() for kind, name in named)
        return Configurations(
            self.denoiser_class.load_config(folder, subfolder=self.denoiser),
            self.latents.vae_class.load_config(folder, subfolder="vae"),
            tuple(texts),
        )

    def _text_config(self, model: Model, name: str) -> Mapping[str, Any]:
        kind = dict(zip(self.text_encoder_names, self.text_encoder_classes, strict=True))[name]
        config = kind.config_class.from_pretrained(base_source(model), subfolder=name, revision=model.revision)
        return dict(config.to_dict())

    @property
    def text_encoder_names(self) -> list[str]:
        """diffusers' names of a pipeline's text encoders."""
        return ["text_encoder", *(f"text_encoder_{number}" for number in range(2, len(self.text_encoder_classes) + 1))]

    def text_tokens(self, model: Model, encoders: Sequence[Any]) -> tuple[int, ...]:
        """Return the greatest number of tokens that each text encoder is given."""
        return tuple(int(encoder.config.max_position_embeddings) for encoder in encoders)

    def random_pipeline(self, configurations: Configurations, corpus: Iterable[str]) -> Any:
        denoiser = self.denoiser_class.from_config(configurations.denoiser)
        vae = self.latents.vae_class.from_config(configurations.vae)
        scheduler = self.scheduler_class.from_config(configurations.scheduler)
        parts, texts, tokenizers = {self.denoiser: denoiser, "vae": vae, "scheduler": scheduler}, tuple(corpus), {}
        named = zip(self.text_encoder_names, self.text_encoder_classes, configurations.text_encoders, strict=True)
        for name, kind, values in named:
            alike = kind.config_class, values.get("max_position_embeddings")  # equal tokenizers count once
            if alike not in tokenizers:
                tokenizers[alike] = tokenizer_for(kind, values, texts)
            parts[name] = random_text_encoder(kind, values, tokenizers[alike])
            parts[name.replace("text_encoder", "tokenizer")] = tokenizers[alike]
        return getattr(diffusers, self.pipeline)(**parts, **configurations.pipeline)

    def denoiser_config(self, model: Model) -> Mapping[str, Any]:
        """Return the configuration of the base's denoiser."""
        return self._config(self.denoiser_class, model, self.denoiser)

    def vae_config(self, model: Model) -> Mapping[str, Any]:
        """Return the configuration of the base's VAE."""
        return self._config(self.latents.vae_class, model, "vae")

    def scheduler_config(self, model: Model) -> Mapping[str, Any]:
        """Return the configuration of the base's scheduler. Raises ConfigError for a class that the family is not trained on."""
        config = self._config(self.scheduler_class, model, "scheduler")
        if (found := config.get("_class_name")) not in self.schedulers:
            raise ConfigError(
                f"{model.base}/scheduler names {found}, whose schedule {self.name} is not trained on here; supported are "
                f"{', '.join(self.schedulers)}"
            )
        return config

    def _config(self, kind: Any, model: Model, part: str) -> Mapping[str, Any]:
        config: Mapping[str, Any] = kind.load_config(base_source(model), subfolder=part, revision=model.revision)
        return config

    def load_encoders(self, model: Model, device: torch.device, vae: Path | None = None) -> Encoders:
        return self.encoders_class(self, model, device, vae)

    def tokens(self, model: Model) -> Tokens:
        return self.tokens_of(self.load_text(model, tokenizers_only=True), model)

    def load_text(self, model: Model, tokenizers_only: bool = False) -> Any:
        """Load the pipeline without denoiser and VAE, on the CPU; with `tokenizers_only` without text encoders, too.

        Raises ConfigError for a tokenizer without a length, and for text_chunks where they have no effect.
        """
        if model.text_chunks > 1 and not self.chunked_texts:
            raise ConfigError(f"model.text_chunks = {model.text_chunks} has no effect for {self.name}; leave it out")
        left_out = {self.denoiser: None, "vae": None, **dict.fromkeys(self.text_encoder_names if tokenizers_only else ())}
        pipeline = self._pipeline(model, **left_out)
        most = {name: self._text_config(model, name).get("max_position_embeddings") for name in self.text_encoder_names}
        check_tokenizers(pipeline, most, model.base)
        return pipeline

    def _pipeline(self, model: Model, **parts: Any) -> Any:
        """Load the pipeline with the given parts in place of its own; None leaves one out."""
        names = (self.denoiser, "vae", *self.text_encoder_names)
        variants = {found for name in names if name not in parts and (found := self._variant(model, name))}
        return self.pipeline_class.from_pretrained(
            base_source(model),
            revision=model.revision,
            variant=next(iter(variants), None),
            dtype=DTYPES[model.dtype],
            use_safetensors=True,
            **parts,
        )

    def _variant(self, model: Model, part: str) -> str | None:
        return variant(model, part, TRANSFORMERS if part in self.text_encoder_names else DIFFUSERS)

    def check_base(self, model: Model, folder: Path) -> Sequence[str]:
        return check_folder(self, model, folder)

    def load_vae(self, model: Model, device: torch.device, folder: Path | None) -> Any:
        """Load the base's VAE in float32 (SDXL's overflows in float16), or the one in `folder` in float16, frozen.

        Raises ConfigError for one of another latent space.
        """
        kind = self.latents.vae_class
        if folder is None:
            source: dict[str, Any] = {"subfolder": "vae", "revision": model.revision, "variant": self._variant(model, "vae")}
            vae = kind.from_pretrained(base_source(model), **source, dtype=torch.float32, use_safetensors=True)
        else:
            found = find_weights(folder, DIFFUSERS)
            vae = kind.from_pretrained(folder, variant=found.variant, dtype=torch.float16, use_safetensors=True)
            with made_in(torch.device("meta"), torch.float32):
                base = kind.from_config(self.vae_config(model))  # includes the defaults that its file leaves out
            for name in self.latents.same_space:
                if (own := vae.config[name]) != (expected := base.config[name]):
                    raise ConfigError(
                        f"the VAE in {folder} has {name} = {own}, the base's has {expected}; give one of the same latent space"
                    )
        self.latents.check(vae.config)
        return vae.to(device).eval().requires_grad_(False)

    def load_denoiser(self, model: Model, adapter: Path | None = None) -> Any:
        whole = self._is_whole(adapter)
        source: dict[str, Any] = {} if whole else {"revision": model.revision, "variant": self._variant(model, self.denoiser)}
        denoiser = self.denoiser_class.from_pretrained(
            str(adapter) if whole else base_source(model),
            **source,
            subfolder=self.denoiser,
            dtype=DTYPES[model.dtype],
            use_safetensors=True,
        )
        if adapter is not None and not whole:
            loading.merge(self._adapter(denoiser, adapter), denoiser, self.denoiser)
        return denoiser.eval().requires_grad_(False)

    def add_lora(self, denoiser: nn.Module, lora: Lora, seed: int) -> list[str]:
        # Forking keeps the caller's generator untouched: only the seed decides the initial weights.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights=True)
            mixin: Any = denoiser  # diffusers mixes peft's methods into its models
            try:
                mixin.add_adapter(config, adapter_name=saving.ADAPTER)
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
        from cpo_ray.models.float8 import replace_linears  # not every supported torch has these products

        replace_linears(denoiser, self.denoiser_class._repeated_blocks)

    def save_adapter(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        found, metadata = saving.layers(denoiser, state), saving.metadata(denoiser)
        keywords: dict[str, Any] = {f"{self.denoiser}_lora_layers": found, f"{self.denoiser}_lora_adapter_metadata": metadata}
        self.pipeline_class.save_lora_weights(folder, **keywords)
        saving.sort_metadata(folder / "pytorch_lora_weights.safetensors")

    def save_other_formats(self, denoiser: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
        mixin: Any = denoiser
        lora = mixin.peft_config[saving.ADAPTER]
        write_lora_formats(
            saving.layers(denoiser, state),
            scale=lora.lora_alpha / lora.r,
            place=lambda module: self.original_place(mixin.config, module),
            outputs=lambda module: mixin.get_submodule(module).out_features,
            folder=folder,
        )

    def save_denoiser(self, model: Model, state: dict[str, Tensor], folder: Path) -> None:
        # Under ZeRO-3 the trained module is empty, so a new one carries the weights.
        fresh = self.load_denoiser(model.model_copy(update={"dtype": "float32"}))
        fresh.load_state_dict(state)
        fresh.save_pretrained(folder / self.denoiser)

    def load_pipeline(self, model: Model, adapter: Path | None = None) -> Any:
        whole = {self.denoiser: self.load_denoiser(model, adapter)} if self._is_whole(adapter) else {}
        pipeline = self._pipeline(model, **whole)
        if adapter is not None and not whole:
            denoiser = getattr(pipeline, self.denoiser)
            loading.add(self._adapter(denoiser, adapter), denoiser, self.denoiser, low_cpu_mem_usage=True)
        return pipeline

    def check_adapter(self, model: Model, adapter: Path, folder: Path | None) -> str:
        denoiser = self.skeleton(model, folder).denoiser
        if not self._is_whole(adapter):
            return str(self._adapter(denoiser, adapter))
        check_names(adapter / self.denoiser, denoiser)
        return f"{adapter} holds a whole denoiser"

    def _adapter(self, denoiser: nn.Module, path: Path) -> Adapter:
        return read_adapter(path, layers_of(denoiser, self.denoiser, self.original_place))

    def _is_whole(self, adapter: Path | None) -> bool:
        """Return whether an export holds a whole denoiser and not a LoRA."""
        return adapter is not None and (adapter / self.denoiser).is_dir()

    def _check_places(self, config: Any, names: list[str]) -> None:
        """Check before training that every adapted layer has a name in the other programs' formats, or it could not be exported
        to them.
        """
        for module in sorted({name.partition(".lora_")[0] for name in names}):
            try:
                self.original_place(config, module)
            except KeyError:
                raise ConfigError(f"lora.targets reach {module!r}, which has no name in the kohya and ComfyUI formats") from None

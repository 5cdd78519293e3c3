"""Open everything that will be loaded from a base's folder, but for the weights, as `--check` does before any actor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from cpo_ray.config import ConfigError, Model
from cpo_ray.models.bases.weights import DIFFUSERS, TRANSFORMERS, find_weights, read_header, read_object

if TYPE_CHECKING:
    from cpo_ray.models.on_diffusers import DiffusersFamily

Opened = TypeVar("Opened")

#: Names of layers in files of older versions of diffusers, which its loader still takes.
_OLD_NAMES = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def check_folder(family: DiffusersFamily, model: Model, folder: Path) -> list[str]:
    """Return what to know about a base: one sentence each. Raises ConfigError with the first reason that keeps it from being
    loaded, or from being what the family takes.
    """
    index = read_object(folder / "model_index.json") if (folder / "model_index.json").is_file() else None
    if index is None:
        raise ConfigError(f"{folder} has no model_index.json; it must be a pipeline saved by diffusers")
    if (pipeline := index.get("_class_name")) != family.pipeline:
        raise ConfigError(f"{folder} holds a {pipeline}; model.family {model.family!r} takes a {family.pipeline}")
    classes = _classes(family)
    _check_parts(folder, index, classes)
    notes = list(_check_weights(family, folder, classes))
    skeleton = _opened(folder, lambda: family.skeleton(model, folder))
    for name, part in ((family.denoiser, skeleton.denoiser), ("vae", skeleton.vae)):
        check_names(folder / name, part)
    family.latents.check(skeleton.vae.config)
    _opened(folder / "scheduler", lambda: family.load_process(model))
    _opened(folder, lambda: family.load_text(model, tokenizers_only=True))
    return notes


def check_tokenizers(pipeline: Any, encoders: Mapping[str, int | None], source: str) -> None:
    """Raise ConfigError for a tokenizer that does not say how many tokens its text encoder takes.

    `encoders` has the greatest number of tokens that each text encoder can tell apart, by its name in the pipeline; None where it
    has no bound.
    """
    for name, most in encoders.items():
        part = name.replace("text_encoder", "tokenizer")
        length = getattr(pipeline, part).model_max_length
        if most is not None and length > most:
            said = f"{length:,}" if length < 1e9 else "nothing"
            raise ConfigError(
                f"{source}/{part} says {said} as model_max_length, and its text encoder takes {most} tokens; write "
                f'"model_max_length": {most} into its tokenizer_config.json'
            )


def _classes(family: DiffusersFamily) -> dict[str, Any]:
    """Return the class of each model in a pipeline of the family."""
    texts = dict(zip(family.text_encoder_names, family.text_encoder_classes, strict=True))
    return {family.denoiser: family.denoiser_class, "vae": family.latents.vae_class, **texts}


def _check_parts(folder: Path, index: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
    """Raise ConfigError for folders that are not there and for models of another class."""
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in classes if name.startswith("text_encoder")]
    if lacking := [f"{name}/" for name in (*classes, *tokenizers, "scheduler") if not (folder / name).is_dir()]:
        raise ConfigError(f"{folder} lacks {', '.join(lacking)}; it was not downloaded as a whole")
    for name, kind in classes.items():
        library, found = index.get(name) or (None, None)
        if found != kind.__name__:
            named = f"{library}'s {found}" if found else "nothing"
            raise ConfigError(f"{folder}/model_index.json names {named} as {name}; this family takes a {kind.__name__}")
        if not (folder / name / "config.json").is_file():
            raise ConfigError(f"{folder / name} has no config.json; it was not downloaded as a whole")
        read_object(folder / name / "config.json")


def _check_weights(family: DiffusersFamily, folder: Path, classes: Iterable[str]) -> Iterator[str]:
    """Read the headers of all files with weights. Yields a sentence for those that exist in another precision only."""
    variants: dict[str, list[str]] = {}
    for name in classes:
        found = find_weights(folder / name, TRANSFORMERS if name.startswith("text_encoder") else DIFFUSERS)
        for file in found.files:
            read_header(file)
        if found.variant:
            variants.setdefault(found.variant, []).append(name)
    if len(variants) > 1:
        raise ConfigError(f"{folder} has weights as {' and '.join(sorted(variants))}, keep one for all parts")
    for variant, names in variants.items():
        yield f"{', '.join(names)} of {folder} exist as variant {variant!r} only, which is loaded"


def check_names(folder: Path, part: nn.Module) -> None:
    """Raise ConfigError where the tensors in the files are not those of the model that the configuration describes.

    A loader fills tensors that it does not find with random numbers, and says so in a warning.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}
    stored = {}
    for file in find_weights(folder, DIFFUSERS).files:
        for name, tensor in read_header(file).items():
            stored[_new_name(name) if name not in expected else name] = tensor.shape
    if lacking := sorted(expected.keys() - stored.keys()):
        raise ConfigError(f"the weights in {folder} lack {_some(lacking)}, which its config.json asks for; download it again")
    if unknown := sorted(stored.keys() - expected.keys()):
        raise ConfigError(f"the weights in {folder} have {_some(unknown)}, which its config.json does not know")
    for name, shape in stored.items():
        if expected[name] != shape and expected[name] != tuple(n for n in shape if n != 1):  # old ones are convolutions of 1 x 1
            raise ConfigError(f"{name} in {folder} has shape {shape}, and its config.json asks for {expected[name]}")


def _new_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    for old, new in _OLD_NAMES:
        if module.endswith(f".{old}"):
            return f"{module.removesuffix(old)}{new}.{kind}"
    return name


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"


def _opened(place: Path, load: Callable[[], Opened]) -> Opened:
    """Return what a loader of diffusers or transformers returns. Raises ConfigError with its reason."""
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:  # loaders raise anything that a damaged file leads them to
        reason = (str(error).strip() or "no reason given").splitlines()[0][:300]
        raise ConfigError(f"{place} cannot be loaded: {type(error).__name__}: {reason}") from None

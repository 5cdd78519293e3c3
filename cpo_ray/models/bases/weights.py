"""Weights in safetensors files: which of them a loader takes, and whether they are whole. Nothing is loaded or unpickled."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cpo_ray.config import ConfigError
from cpo_ray.config.text import read_file

#: How weights' files begin that diffusers and transformers have written.
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
#: Files that can hold code. They are never opened.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LARGEST_HEADER = 100 * 2**20


class Stored(NamedTuple):
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


class Weights(NamedTuple):
    """The files that a loader takes from a folder; `variant` is their name's addition, such as "fp16"."""

    files: tuple[Path, ...]
    variant: str | None


def pickles_among(names: Iterable[str]) -> list[str]:
    """Return the names of files that can hold code."""
    return sorted(name for name in names if name.lower().endswith(PICKLES))


def variant_among(names: Iterable[str], stem: str) -> str | None:
    """Return the variant that a folder's weights have, or None if there are plain ones or none at all."""
    found, stem = set(names), re.escape(stem)
    if any(re.fullmatch(rf"{stem}\.safetensors(\.index\.json)?", name) for name in found):
        return None
    pattern = re.compile(rf"{stem}\.(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json)")
    variants = sorted({match[1] or match[2] for name in found if (match := pattern.fullmatch(name))})
    # Of several, half precision is what people mean; others are averages or prunings.
    return next((variant for variant in variants if variant.endswith("16")), variants[0] if variants else None)


def find_weights(folder: Path, stem: str) -> Weights:
    """Return the whole files that a loader takes from a folder.

    Raises ConfigError where there are none, only pickles, or one of them is missing, a pointer or cut.
    """
    names = [entry.name for entry in folder.iterdir()]
    variant = variant_among(names, stem)
    added = f".{variant}" if variant else ""
    index, single = f"{stem}.safetensors.index{added}.json", f"{stem}{added}.safetensors"
    if index in names:
        named = sorted(set(_weight_map(folder / index).values()))
        if lacking := [name for name in named if name not in names]:
            raise ConfigError(f"{folder} lacks {', '.join(lacking)}, which its {index} names; download it again")
        return Weights(tuple(folder / name for name in named), variant)
    if single in names:
        return Weights((folder / single,), variant)
    if pickles := pickles_among(names):
        raise ConfigError(
            f"{folder} has its weights only as {', '.join(pickles)}; pickles can run code and are never opened; convert "
            f"them to {stem}.safetensors"
        )
    raise ConfigError(f"{folder} has no {stem}.safetensors; download it again")


def read_header(file: Path) -> dict[str, Stored]:
    """Return the tensors that a safetensors file says it holds. Raises ConfigError if it is not such a file, or is cut."""
    header, size = _header(file)
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    try:
        found = {name: Stored(value["dtype"], tuple(value["shape"])) for name, value in tensors.items()}
        expected = size + max((value["data_offsets"][1] for value in tensors.values()), default=0)
    except (TypeError, KeyError, IndexError):
        raise ConfigError(f"{file} is no safetensors file: its header is damaged; download it again") from None
    if (there := file.stat().st_size) < expected:
        raise ConfigError(f"{file} is cut: it has {there:,} of {expected:,} bytes; download it again")
    return found


def read_metadata(file: Path) -> dict[str, str]:
    """Return the texts beside the tensors of a safetensors file. Raises ConfigError as `read_header` does."""
    metadata = _header(file)[0].get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ConfigError, also for a web page or a pointer in its place."""
    try:
        data = read_file(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(f"{file} is {_likeness(data)}, not JSON; download it again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds no JSON object; download it again")
    return found


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header and where the tensors begin."""
    with file.open("rb") as stream:
        start = stream.read(1024)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 9 or start[8:9] != b"{" or length > _LARGEST_HEADER:
            raise ConfigError(f"{file} is {_likeness(start)}, not a safetensors file; download it again")
        stream.seek(8)
        text = stream.read(length)
    if len(text) < length:
        raise ConfigError(f"{file} is cut: it has {8 + len(text):,} bytes, less than its header; download it again")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"{file} is no safetensors file: its header is not JSON; download it again") from None
    return header, 8 + length


def _weight_map(index: Path) -> Mapping[str, str]:
    """Return tensor → file of an index."""
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and name == os.path.basename(name) for name in found.values()
    ):
        raise ConfigError(f"{index} has no weight_map from tensors to files beside it; download it again")
    return dict(found or {})


def _likeness(data: bytes) -> str:
    """Return what a file that is something else seems to be."""
    start = data.lstrip()[:64].lower()
    if not data:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs (run git lfs pull)"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    if start.startswith((b"pk\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "a pickle, which can run code and is never opened"
    return "damaged"

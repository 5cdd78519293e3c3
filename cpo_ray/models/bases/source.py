"""Where a base lies: a folder, one in a Python package, a hub id, or a path with a mistake in it."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

from cpo_ray.config import ConfigError, Model

#: Begins the address of a base that a Python package ships; it means the same on every machine.
PACKAGE = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]")
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".zip")
#: First parts that are the names of people's own folders and no one's on the hub.
_OWN_FOLDERS = ("models", "model", "checkpoints", "weights", "base", "bases", "runs", "data")


def base_source(model: Model) -> str:
    """Return where the base is loaded from: a local folder, one in a Python package, or a hub id.

    Raises ConfigError for a package that is not installed or has no such folder, for a single file, and for a path that leads
    nowhere.
    """
    base = model.base
    if base.startswith(PACKAGE):
        return _in_package(base)
    path = Path(base).expanduser()
    if path.is_dir():
        return str(path) if base.startswith("~") else base
    if path.is_file():
        raise ConfigError(
            f"model.base = {base!r} is a single file; a base is a folder with text encoders and VAE, too, as diffusers saves it: "
            f"python jobs/unpack_base.py model.family={model.family} model.base={base} --folder FOLDER makes one"
        )
    if not is_hub_id(base):
        raise ConfigError(f"there is no folder {base}; give a folder saved by diffusers or a hub id")
    return base


def anywhere(model: Model) -> Model:
    """Return the section with a base that all processes find: a local folder gets its absolute path, since Ray's workers work in
    folders of their own.
    """
    folder = Path(model.base).expanduser()
    return model.model_copy(update={"base": str(folder.absolute())}) if folder.is_dir() else model


def is_hub_id(base: str) -> bool:
    """Return whether a base has the form of a hub id, owner/name, and not that of a path."""
    return bool(_HUB_ID.fullmatch(base)) and not base.lower().endswith(_FILES) and base.split("/")[0] not in _OWN_FOLDERS


def local_base(model: Model) -> Path | None:
    """Return the base's folder on this machine, its own or in the hub's cache; None if it is in neither, or not as a whole."""
    source = base_source(model)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, "model_index.json", revision=model.revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    parts = json.loads(Path(index).read_text(encoding="utf-8"))
    models = [name for name, kind in parts.items() if isinstance(kind, list) and kind[0] and not name.startswith("tokenizer")]
    return folder if all(any((folder / name).glob("*.json")) for name in models) else None


def _in_package(base: str) -> str:
    module, _, folder = base.removeprefix(PACKAGE).partition("/")
    try:
        found = Path(str(files(module).joinpath(folder)))
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"model.base is {base!r}, and {module!r} cannot be imported: {error}") from None
    if not found.is_dir():
        raise ConfigError(f"model.base is {base!r}, and the package {module} has no folder {folder!r}")
    return str(found)

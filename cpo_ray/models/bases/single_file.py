"""A checkpoint in a single file, as ComfyUI and others take it, becomes a folder as diffusers saves it."""

from __future__ import annotations

from pathlib import Path

import diffusers

from cpo_ray.config import Config, ConfigError
from cpo_ray.models import family
from cpo_ray.models.bases.weights import PICKLES, read_header


def unpack(config: Config, folder: Path) -> None:
    """Write the base in the file `model.base` as a whole pipeline to `folder`, in float32.

    Configurations and tokenizers are not in such a file; diffusers takes them from the hub. Raises ConfigError for a pickle, a
    broken file, a folder that is not empty, and with diffusers' reason where it cannot read the file.
    """
    model, file = config.model, Path(config.model.base).expanduser()
    if file.suffix.lower() in PICKLES:
        raise ConfigError(f"{file} is a pickle, which can run code and is never opened; take a .safetensors file of the model")
    if not file.is_file():
        raise ConfigError(f"there is no file {file}; model.base is the checkpoint to unpack")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; name a new folder")
    read_header(file)
    architecture = family(model)
    kind = getattr(diffusers, architecture.pipeline)
    try:
        pipeline = kind.from_single_file(str(file), use_safetensors=True)
    except Exception as error:  # of any kind: another architecture, no network
        reason = (str(error).strip() or "no reason given").splitlines()[0][:300]
        raise ConfigError(f"{file} cannot be read as a {architecture.pipeline}: {type(error).__name__}: {reason}") from None
    pipeline.save_pretrained(folder)
    for note in architecture.check_base(model.model_copy(update={"base": str(folder)}), folder):
        print(note)
    print(f"{folder} is a base now: model.base={folder}")

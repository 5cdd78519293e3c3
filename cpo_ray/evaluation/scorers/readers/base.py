"""A model that reads numbers from pictures: where its weights come from, and how pictures are brought to its size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cpo_ray.config.evaluation import ModelScorerSettings
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.scorers.base import NotScored
from cpo_ray.models.bases.source import is_hub_id

#: Beside the weights: configurations and vocabularies. Pickles and code are never fetched.
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")

#: How a picture is brought to a square: the shorter side fits and the middle is kept, the longer side fits and the rest is black,
#: or both sides are stretched.
Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class WeightFiles:
    """Files of safetensors on this machine, and the folder with what lies beside them; None for a single file."""

    source: str
    files: tuple[Path, ...]
    folder: Path | None

    @property
    def fingerprint(self) -> str:
        """Changes when the files are others: by their names, sizes and times, since they are too large to be read for it."""
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def configuration(self) -> dict[str, Any] | None:
        """The config.json of the weights; None where there is none."""
        file = self.folder / "config.json" if self.folder else None
        return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU. Raises NotScored for a damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for file in self.files:
            try:
                found |= load_file(file)
            except (SafetensorError, OSError) as error:
                raise NotScored(f"{file} cannot be read as safetensors ({error}); fetch it again") from None
        return found


def find_weights(told: ModelScorerSettings, *, download: bool = True) -> WeightFiles:
    """The weights that a scorer is told of; without `download` only those that are on this machine.

    Raises NotScored where they are not to be had, are several without an index, or are pickles.
    """
    if not told.weights:
        raise NotScored(
            "nobody publishes its weights as safetensors; convert them once as docs/scorers.md shows and name them with `weights`"
        )
    place = Path(told.weights).expanduser()
    if place.is_file():
        if place.suffix != ".safetensors":
            raise NotScored(f"the weights {place} are not safetensors; {_conversion(place.name)}")
        return WeightFiles(told.weights, (place,), None)
    if place.is_dir():
        return WeightFiles(told.weights, _files_in(place), place)
    if not is_hub_id(told.weights):
        raise NotScored(
            f"there are no weights at {told.weights!r}; give a folder, a file of safetensors or a hub id with `weights`"
        )
    folder = _from_hub(told.weights, told.revision, download)
    return WeightFiles(told.weights, _files_in(folder), folder)


def _from_hub(name: str, revision: str | None, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    reason = ""
    for patterns in (("model*.safetensors",), ("*.safetensors",)):  # some repositories hold the same weights in two forms
        allowed = [*patterns, *_SMALL_FILES]
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=allowed, local_files_only=not download))
        except Exception as error:  # no network, no such repository, no right to read it, no room on the disk
            reason = str(error).strip().partition("\n")[0]
            break
        if any(folder.glob("*.safetensors")):
            return folder
    if not reason:
        reason = "the repository holds no safetensors"
    raise NotScored(
        f"{name} cannot be had from the hub ({reason}); bring its files to this machine and name their folder with `weights`"
    )


def _files_in(folder: Path) -> tuple[Path, ...]:
    """The safetensors that belong together. Raises NotScored where that is unclear or there are none."""
    if (index := folder / "model.safetensors.index.json").is_file():
        return tuple(folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    files = sorted(folder.glob("*.safetensors"))
    if whole := [file for file in files if file.name == "model.safetensors"]:
        return (whole[0],)
    if len(files) == 1:
        return (files[0],)
    if files:
        raise NotScored(f"{folder} holds {', '.join(file.name for file in files)}; name one of these files with `weights`")
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
    if pickles:
        raise NotScored(f"{folder} holds no safetensors; {_conversion(pickles[0])}")
    raise NotScored(f"{folder} holds no safetensors; name the folder or the file that does with `weights`")


def _conversion(name: str) -> str:
    return f"pickles such as {name} can run code and are not read, so convert it once as docs/scorers.md shows"


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill a module in float32. Raises NotScored unless names and shapes are exactly its own."""
    # Buffers that count positions were saved by older libraries and hold nothing.
    given = {name: values.float() for name, values in tensors.items() if not name.endswith("position_ids")}
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} belongs to another model" for name in given if name not in own]
    problems += [
        f"{name} is {tuple(given[name].shape)} and not {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if problems:
        rest = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise NotScored(f"{source} does not fit the scorer's model: {problems[0]}{rest}; choose weights of that model")
    module.load_state_dict(given, assign=True)
    for part in module.modules():
        ids = getattr(part, "position_ids", None)
        if isinstance(ids, Tensor) and ids.is_meta:
            part.position_ids = torch.arange(ids.shape[-1]).expand(1, -1)


class Reader(nn.Module):
    """Reads D numbers from each picture, in float32. A subclass is one architecture with its weights."""

    side: int
    """Side in pixels of the square that its model sees."""
    fit: Fit = "crop"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """The mean colour in [0, 1], red, green and blue; it is CLIP's, which BLIP took over."""
    deviation: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what `forward` is told of the prompts, each (N, T); nothing where they do not count."""
        return {}

    def largest_tokens(self, count: int) -> dict[str, Tensor]:
        """The tokens of that many prompts of the greatest length, for the planner."""
        return {}

    def pixels(self, pictures: Iterable[Picture]) -> Tensor:
        """(N, 3, side, side) float32, normalised."""
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.deviation))
        return torch.stack([(square(picture, self.side, self.fit) - mean) / deviation for picture in pictures])

    @torch.inference_mode()
    def read(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) numbers of as many pictures as its device holds together. Raises NotScored for a number that is not finite."""
        device = next(self.parameters(), torch.empty(0)).device
        tokens = {name: values.to(device) for name, values in self.tokens(prompts).items()}
        rows: NDArray[np.float32] = self(self.pixels(pictures).to(device), **tokens).float().cpu().numpy()
        if not np.isfinite(rows).all():
            at = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise NotScored(f"the model reads NaN or infinity from a picture ({prompts[at]!r}); its weights may be damaged")
        return rows


class PixelReader(Reader):
    """Reads the colours themselves, (N, 3072): pictures stretched to 32 × 32, in [0, 1]."""

    side = 32
    fit = "stretch"
    mean = (0.0, 0.0, 0.0)
    deviation = (1.0, 1.0, 1.0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Every colour of every pixel."""
        return pixels.flatten(1)


def square(picture: Picture, side: int, fit: Fit) -> Tensor:
    """(3, side, side) in [0, 1].

    It is resized by cubic convolution with antialiasing, and rounded to 8 bits, as the published pipelines do.
    """
    height, width = picture.shape[:2]
    scale = side / (max(height, width) if fit == "pad" else min(height, width))
    size = (side, side) if fit == "stretch" else (max(1, round(height * scale)), max(1, round(width * scale)))
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    if size != (height, width):
        values = functional.interpolate(values, size, mode="bicubic", antialias=True, align_corners=False)
    values = values[0].clamp(0, 255).round() / 255
    if fit == "pad":
        top, left = (side - size[0]) // 2, (side - size[1]) // 2
        return functional.pad(values, (left, side - size[1] - left, top, side - size[0] - top))
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return values[:, top : top + side, left : left + side]

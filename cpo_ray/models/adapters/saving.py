"""An adapter in diffusers' own format: its matrices, and beside them what a loader needs."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

#: The name of the one adapter that a denoiser has in training.
ADAPTER = "default"


def layers(denoiser: nn.Module, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the adapter's matrices on the CPU, named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    layers = get_peft_model_state_dict(denoiser, state_dict=state, adapter_name=ADAPTER)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in layers.items()}


def metadata(denoiser: Any) -> dict[str, Any]:
    """Return what a loader needs beside the weights. Without it lora_alpha is lost, and the reloaded adapter is wrong without an
    error.
    """
    config = denoiser.peft_config[ADAPTER].to_dict()
    known = inspect.signature(LoraConfig).parameters
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items() if k in known}
    return {k: v for k, v in plain.items() if isinstance(v, str | int | float | bool | list)}


def sort_metadata(file: Path) -> None:
    """Sort the header's metadata. safetensors writes it in random order, and equal adapters must be equal files."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

"""Tensors written one after another are a safetensors file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cpo_ray.training.artifacts.tensor_file import TensorEntry, write_tensors

TENSORS = {
    "a/weights": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).t(),
    "b/step": torch.tensor(7.0),
    "c/quantised": torch.arange(5, dtype=torch.uint8),
    "d/half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
    "e/nothing": torch.zeros(0, 4),
    "f/count": torch.tensor(2**40),
}


def test_what_is_written_is_read_by_safetensors(tmp_path: Path) -> None:
    entries = [TensorEntry(name, tensor.dtype, tensor.shape, tensor.clone) for name, tensor in TENSORS.items()]
    write_tensors(tmp_path / "state.safetensors", entries, {"updates": "4"})
    read = load_file(tmp_path / "state.safetensors")
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert file.metadata() == {"updates": "4"}


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise OSError("a rank was lost")

    whole = TensorEntry("a", torch.float32, torch.Size([2]), lambda: torch.ones(2))
    with pytest.raises(OSError, match="a rank was lost"):
        write_tensors(tmp_path / "state.safetensors", [whole, TensorEntry("b", torch.float32, torch.Size([2]), fail)], {})
    assert not (tmp_path / "state.safetensors").exists()

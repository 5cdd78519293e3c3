"""Write tensors into a safetensors file one after another, so that memory never holds all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cpo_ray.core.files import written

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"}


class TensorEntry(NamedTuple):
    """A tensor that is computed when it is asked for."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    tensor: Callable[[], Tensor]


def write_tensors(path: Path, entries: Sequence[TensorEntry], metadata: Mapping[str, str]) -> None:
    """Write a file that nobody ever sees half-written; each entry is asked for its tensor once, in order.

    The format (github.com/huggingface/safetensors): the length of a JSON header in 8 bytes, the header, the numbers.
    """
    header = _header(entries, metadata)
    with written(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for entry in entries:
            tensor = entry.tensor()
            assert (tensor.dtype, tensor.shape) == (entry.dtype, entry.shape), entry.name
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def _header(entries: Iterable[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape, _ in entries:
        start, end = end, end + shape.numel() * dtype.itemsize
        assert name not in table, name
        table[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table).encode()
    return text + b" " * (-len(text) % 8)  # the data must begin at a multiple of eight

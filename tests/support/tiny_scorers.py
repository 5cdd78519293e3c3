"""Small models of the real architectures for scorers: the libraries' own classes with other widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from cpo_ray.evaluation.scorers.readers.inception import InceptionReader
from cpo_ray.models.tiny import clip_tokenizer

PROMPTS = ("a red circle", "a blue square on grey", "a green star", "a red circle")

TINY_CLIP: dict[str, Any] = {
    "projection_dim": 8,
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
        "image_size": 28,
        "hidden_act": "gelu",
    },
    "text_config": {
        "hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
        "max_position_embeddings": 16,
    },
}


def randomised(module: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights of another value each, also where a library begins with 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    return {name: values + 0.2 * torch.randn(values.shape, generator=generator) for name, values in module.state_dict().items()}


def tiny_clip(folder: Path, seed: int = 0) -> CLIPModel:
    """Save a small CLIP with its vocabulary as transformers does, and return it."""
    tokenizer = clip_tokenizer(PROMPTS, max_length=16)
    text = TINY_CLIP["text_config"] | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = CLIPModel(CLIPConfig.from_dict(TINY_CLIP | {"text_config": text})).eval()
    model.load_state_dict(randomised(model, seed))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def inception_weights(file: Path) -> InceptionReader:
    """Save Inception v3 with random weights under the published names, counters and classifier included, and return it."""
    torch.manual_seed(0)
    reader = InceptionReader().eval()
    extra = {
        "fc.weight": torch.zeros(8, 2048),
        "fc.bias": torch.zeros(8),
        "Mixed_5b.branch1x1.bn.num_batches_tracked": torch.ones(()),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(reader.state_dict() | extra, file)
    return reader


def noise_pictures(count: int, side: int = 40, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Pictures (side, side + 8, 3), each of another colour with some noise."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(40, 216, size=(count, 1, 1, 3))
    return list((colours + generator.integers(-40, 40, size=(count, side, side + 8, 3))).astype(np.uint8))

"""An independent judge of content: a small convolutional classifier trained on renders.

It says what a picture shows (shape, color, ground) and gives the features for the Fréchet distance to good pictures. It never
sees attribute labels, and its training pictures share no seed with any evaluated picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cpo_ray.domains.toy.render import BY_PROMPT, COLORS, GROUNDS, SHAPES, Image

HEADS = (SHAPES, tuple(COLORS), GROUNDS)
ASSET = Path(__file__).parent / "assets" / "judge.safetensors"


class Judge(nn.Module):
    """(B, 3, 64, 64) in [-1, 1] → features (B, 64) and one logit vector per head (shape, color, ground)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 24), (24, 48), (48, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(64, len(names)) for names in HEADS)

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 3, 64, 64) in [-1, 1] → (B, 64)."""
        found: Tensor = self.trunk(pictures)
        return found

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = self.features(pictures)
        return [head(features) for head in self.heads]


def to_tensor(pictures: list[Image]) -> Tensor:
    """Pictures (64, 64, 3) uint8 → (B, 3, 64, 64) float in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def content_targets(prompts: list[str]) -> Tensor:
    """Class indices (B, 3) of shape, color and ground for content prompts of the domain."""
    rows = []
    for prompt in prompts:
        content = BY_PROMPT[prompt]
        values = (content.shape, content.color, content.ground)
        rows.append([names.index(v) for names, v in zip(HEADS, values, strict=True)])
    return torch.tensor(rows)


def load_judge(path: Path = ASSET) -> Judge:
    """The shipped judge, in evaluation mode."""
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval()


@torch.no_grad()
def content_hits(judge: Judge, pictures: list[Image], prompts: list[str]) -> np.ndarray:
    """Return (B, 3) booleans: was the shape, the color, the ground recognised as the prompt asks?"""
    logits = judge(to_tensor(pictures))
    found = torch.stack([head.argmax(1) for head in logits], 1)
    return (found == content_targets(prompts)).numpy()

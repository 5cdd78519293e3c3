"""Pictures that a bad model might have drawn, and the annotator domain that reads them.

As a program it measures some of them, so that a test can kill it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from support.annotating import TREE

from cpo_ray.domains.annotator.domain import AnnotatorDomain, AnnotatorSettings
from cpo_ray.domains.annotator.scorers import ShowsPrompt
from cpo_ray.domains.toy.render import ATTRIBUTES, CONTENTS, Image, Scene, render
from cpo_ray.evaluation.measure import measure
from cpo_ray.evaluation.scorers.negatives import Negatives
from cpo_ray.hierarchy import load_hierarchy


def some_pictures(count: int) -> tuple[list[Image], list[str]]:
    """Renders with and without faults, some of another content than their prompt's, some under noise; all different."""
    generator = np.random.default_rng(0)
    pictures, prompts = [], []
    for number in range(count):
        content = CONTENTS[number % len(CONTENTS)]
        shown = CONTENTS[(number + number % 2) % len(CONTENTS)]
        faults = frozenset(name for name in ATTRIBUTES if generator.random() < 0.3)
        picture = render(Scene(shown, faults, bool(number % 3 == 0), number)).astype(np.float64)
        noisy = picture + generator.normal(0, 40 * (number % 4 == 3), picture.shape)
        pictures.append(noisy.round().clip(0, 255).astype(np.uint8))
        prompts.append(content.prompt)
    return pictures, prompts


def open_annotator(folder: Path, url: str = "", **told: Any) -> AnnotatorDomain:
    """The domain with answers in folder/answers and an impatient endpoint, or without a url the measuring agent.

    What is told is a setting of the agent or of its endpoint.
    """
    agent = {key: told.pop(key) for key in ("stop_after", "questions_per_second") if key in told}
    impatient = {"timeout_seconds": 60.0, "attempts": 10, "backoff_seconds": 0.01, "in_flight": 8}
    endpoint: dict[str, Any] = {"kind": "endpoint", "url": url, "model": "scripted", **impatient, **told}
    annotation: dict[str, Any] = {"back_end": endpoint if url else "measuring", "answers": folder / "answers", "format": "png"}
    settings = AnnotatorSettings.model_validate({"use": "annotator", "annotation": annotation | agent})
    return AnnotatorDomain(settings, load_hierarchy(TREE))


if __name__ == "__main__":
    measure(*some_pictures(int(sys.argv[3])), open_annotator(Path(sys.argv[1]), sys.argv[2]), (Negatives(), ShowsPrompt()))

"""Annotation without Ray, for tests: the same parts that an actor drives, driven directly.

As a program it annotates what a configuration names and prints the outcomes, so that a test can kill it.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpo_ray.annotation.asking.annotator import Annotator, Effort, Outcome
from cpo_ray.annotation.asking.cache import Answers
from cpo_ray.annotation.back_ends.base import open_back_end
from cpo_ray.annotation.listing import list_pictures
from cpo_ray.annotation.pictures import Picture, prepare
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.data.picture import PictureError
from cpo_ray.data.sources.extent import read
from cpo_ray.hierarchy import load_hierarchy

TREE = Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml"


def settings(folder: Path, url: str = "", **endpoint: Any) -> AnnotationConfig:
    """Pictures in folder/pictures, answers in folder/answers; with a url an impatient endpoint, otherwise the measuring agent."""
    impatient = {"url": url, "model": "scripted", "timeout_seconds": 4.0, "attempts": 10, "backoff_seconds": 0.01}
    return AnnotationConfig.model_validate(
        {
            "pictures": {"path": folder / "pictures"},
            "annotation": {
                "hierarchy": TREE,
                "back_end": {"kind": "endpoint", **impatient, **endpoint} if url else "measuring",
                "answers": folder / "answers",
                "output": folder / "output",
                "format": "png",
                "cpus_per_actor": 0.5,
            },
        }
    )


def prepared(config: AnnotationConfig) -> list[Picture]:
    """The readable pictures of a configuration."""
    entries = list_pictures(config.pictures).entries
    found = zip(entries, read(entry.extent for entry in entries), strict=True)
    return [
        prepare(entry.id, entry.prompt, data, config.annotation.side, config.annotation.format)
        for entry, data in found
        if not isinstance(data, PictureError)
    ]


def annotate(config: AnnotationConfig, pictures: list[Picture] | None = None, **options: Any) -> dict[str, Outcome]:
    """Id → outcome of every picture."""
    return asyncio.run(_annotate(config, prepared(config) if pictures is None else pictures, **options))


def expect(config: AnnotationConfig, pictures: list[Picture]) -> Effort:
    """Return what a dry run says of these pictures."""
    answers = Answers(config.annotation.answers, config.annotation.identity)
    tree = load_hierarchy(config.annotation.hierarchy)
    annotator = Annotator(tree, None, answers, tries=1, write_prompts=config.annotation.write_prompts)
    return effort({picture.id: annotator.expect(picture) for picture in pictures})


async def _annotate(config: AnnotationConfig, pictures: list[Picture], **options: Any) -> dict[str, Outcome]:
    tree, back_end = load_hierarchy(config.annotation.hierarchy), open_back_end(config.annotation.back_end, "cpu")
    given = {"tries": config.annotation.tries, "write_prompts": config.annotation.write_prompts}
    with Answers(config.annotation.answers, config.annotation.identity) as answers:
        annotator = Annotator(tree, back_end, answers, **{**given, **options})
        try:
            outcomes = await asyncio.gather(*(annotator.annotate(picture) for picture in pictures))
        finally:
            await back_end.close()
    return {outcome.id: outcome for outcome in outcomes}


def labels(outcomes: dict[str, Outcome]) -> dict[str, tuple[Any, ...]]:
    """Id → what a picture's row would say."""
    return {i: (o.problem, o.prompt, tuple(o.positive_ids), tuple(o.negative_ids)) for i, o in outcomes.items()}


def effort(outcomes: dict[str, Outcome]) -> Effort:
    """Return what all pictures took together."""
    total = Effort()
    for outcome in outcomes.values():
        total.add(outcome.effort)
    return total


if __name__ == "__main__":
    print(asdict(effort(annotate(settings(Path(sys.argv[1]), sys.argv[2], in_flight=8)))))

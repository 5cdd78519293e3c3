"""The embedded domain behind the door that every domain comes through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpo_ray.core.prompts import Labels
from cpo_ray.core.splits import Split
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.domains.toy.agent import MeasuringAgent
from cpo_ray.domains.toy.dataset import draw_pictures, make_dataset
from cpo_ray.domains.toy.render import Image, Scene, contents_of
from cpo_ray.evaluation.domain import Domain

SCORERS = "cpo_ray.domains.toy.scorers"


class ToyDomain(Domain):
    """Pictures that a program draws. A measuring agent reads their attributes, and a judge their content."""

    own_pictures = True
    base = "package:cpo_ray.domains.toy/assets/base"
    scorers = ("negatives", f"{SCORERS}:ShowsContent", f"{SCORERS}:DistanceToGood")

    def requests(self, split: Split, dataset: AnnotatedDataset) -> list[Labels]:
        """Every content of a split with all that would be good about it, placed in the centre."""
        scenes = (Scene(content, frozenset(), thirds=False, seed=0) for content in contents_of(split))
        return [Labels(scene.content.prompt, scene.positive_ids, ()) for scene in scenes]

    def annotate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[Labels]:
        """Return what the measuring agent reads from the pixels."""
        found = MeasuringAgent().annotate(pictures, prompts)
        return [Labels(prompt, seen.positive_ids, seen.negative_ids) for prompt, seen in zip(prompts, found, strict=True)]

    def make_data(self, folder: Path, count: int, seed: int) -> AnnotatedDataset:
        """Renders of the training contents, labelled by the measuring agent."""
        return make_dataset(folder, count, seed, self.tree)

    def draw_pictures(self, folder: Path, count: int, seed: int) -> None:
        """The same renders as PNG files with a metadata.jsonl."""
        draw_pictures(folder, count, seed)

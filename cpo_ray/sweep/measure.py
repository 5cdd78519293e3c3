"""How a trial is judged while it runs: the same validation prompts and noise for every trial and rung, measured by the domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cpo_ray.config import Config
from cpo_ray.core.statistics import frechet_interval
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.evaluation.generate import Picture, PictureActor, generation_job
from cpo_ray.evaluation.stage import domain_of
from cpo_ray.sweep.records import Measured

#: Noise that is tuned on. The gate, the samples beside a training and the evaluation that counts have theirs.
VALIDATION_SEED = 70_000
#: Pictures of each trial that the report shows, evenly spaced over all of them.
SHOWN = 8


def validation_prompts(config: Config, dataset: AnnotatedDataset, count: int) -> list[str]:
    """Prompts to choose by, in turn: contents that are neither trained on nor counted in the end."""
    if isinstance(domain_of(config), ToyDomain):
        prompts = [request.prompt for request in ToyDomain.requests("validation")]
    else:
        prompts = [dataset.labels(i).prompt for i in dataset.split("validation") or dataset.ids]
    return [prompts[i % len(prompts)] for i in range(count)]


class Measurer:
    """Draws and measures, one model after the other; lives in an actor that several trials share.

    It keeps the pipeline and what good pictures look like, so that neither is loaded once per trial.
    """

    def __init__(self, config: Config, prompts: list[str]) -> None:
        self._config, self._prompts = config, prompts
        self._artist, self._domain = PictureActor(), domain_of(config)
        self._good = None if self._domain is None else self._domain.good_features(prompts)

    def measure(self, adapter: Path | None) -> tuple[Measured | None, list[Picture]]:
        """What the pictures of a model are worth (None without a domain), and those that are shown; None is the base itself."""
        pictures = self._draw(adapter)
        shown = [pictures[i] for i in shown_indices(len(pictures))]
        if self._domain is None or self._good is None:
            return None, shown
        found = self._domain.annotate(pictures, self._prompts)
        measured = Measured(
            negatives=tuple(len(labels.negative_ids) for labels in found),
            content=tuple(bool(hit) for hit in self._domain.content_hits(pictures, self._prompts)),
            distance=frechet_interval(self._domain.features(pictures), self._good),
        )
        return measured, shown

    def _draw(self, adapter: Path | None) -> list[Picture]:
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + len(self._prompts))
        job = generation_job(self._config, adapter, self._prompts, seeds)
        made = {
            i: picture for indices in job.batches() for i, picture in zip(indices, self._artist.draw(job, indices), strict=True)
        }
        return [made[i] for i in range(len(made))]


def shown_indices(count: int) -> list[int]:
    """Which of `count` pictures are shown."""
    return list(dict.fromkeys(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int).tolist()))


def save_pictures(pictures: list[Picture], folder: Path) -> None:
    """Write them as 0.png, 1.png … for the report."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")


def read_pictures(folder: Path) -> list[Picture]:
    """What `save_pictures` wrote."""
    files = sorted(folder.glob("*.png"), key=lambda file: int(file.stem))
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]

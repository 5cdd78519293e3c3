"""How a trial is judged while it runs: the same validation prompts and noise for every trial and rung, scored alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cpo_ray.config import Config, ConfigError
from cpo_ray.config.sweep import Sweep
from cpo_ray.evaluation.domain import open_domain
from cpo_ray.evaluation.generate import Picture, PictureActor, generation_job
from cpo_ray.evaluation.measure import Measured, Scores, measure
from cpo_ray.evaluation.rounds import Round
from cpo_ray.evaluation.scorers.base import Scorer, open_scorers
from cpo_ray.hierarchy import load_hierarchy

#: Pictures of each trial that the report shows, evenly spaced over all of them.
SHOWN = 8


class Measurer:
    """Draws and measures, one model after the other; lives in an actor that several trials share.

    It keeps the pipeline and what good pictures look like, so that neither is loaded once per trial.
    """

    def __init__(self, config: Config, asked: Round) -> None:
        self._config, self._asked = config, asked
        self._artist, self._domain = PictureActor(), open_domain(config.domain, load_hierarchy(config.data.hierarchy))
        self._scorers = open_scorers(config)

    def measure(self, adapter: Path | None) -> tuple[Measured | None, list[Picture]]:
        """What the pictures of a model are worth (None without a scorer), and those that are shown; None is the base itself."""
        pictures = self._draw(adapter)
        shown = [pictures[i] for i in shown_indices(len(pictures))]
        if not self._scorers:
            return None, shown
        return measure(pictures, self._asked.prompts, self._domain, self._scorers).without_labels(), shown

    def _draw(self, adapter: Path | None) -> list[Picture]:
        job = generation_job(self._config, adapter, self._asked.prompts, self._asked.seeds)
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


def goals(sweep: Sweep, scorers: Sequence[Scorer]) -> tuple[Scorer, ...]:
    """The scorers that `sweep.goals` names; of its default those that there are.

    Raises ConfigError for a name that no scorer has.
    """
    known = {scorer.name: scorer for scorer in scorers}
    missing = [name for name in sweep.goals if name not in known]
    if missing and "goals" in sweep.model_fields_set:
        raise ConfigError(
            f"sweep.goals names {missing[0]!r}, by which nothing is scored here; "
            f"choose among {', '.join(known) or 'none (name evaluation.scorers or a domain)'}"
        )
    return tuple(known[name] for name in sweep.goals if name in known)


def costs(found: Scores, aims: Sequence[Scorer]) -> tuple[float, ...]:
    """A model's numbers for these scorers, each turned so that less is better."""
    return tuple(found.intervals[aim.name].mean * (1 if aim.better == "lower" else -1) for aim in aims)

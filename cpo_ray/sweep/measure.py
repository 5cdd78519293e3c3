"""How a trial is judged while it runs: the same validation prompts and noise for every trial and rung, scored alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cpo_ray.config import Config, ConfigError
from cpo_ray.config.sweep import Sweep
from cpo_ray.evaluation.domain import Picture, open_domain
from cpo_ray.evaluation.generate import PictureActor, generation_job
from cpo_ray.evaluation.measure import Measured, Readings, Scores, measure
from cpo_ray.evaluation.readings import Asked, on_device, read_here, readings_of
from cpo_ray.evaluation.rounds import Round
from cpo_ray.evaluation.scorers.base import ModelScorer, NotScored, Scorer, open_scorers
from cpo_ray.evaluation.scorers.readers.base import Reader
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
        self._readers: dict[str, Reader] = {}

    def measure(self, adapter: Path | None) -> tuple[Measured | None, list[Picture]]:
        """What the pictures of a model are worth (None without a scorer), and those that are shown; None is the base itself.

        Raises NotScored where a scorer that the sweep goes by has no number.
        """
        pictures = self._draw(adapter)
        shown = [pictures[i] for i in shown_indices(len(pictures))]
        if not self._scorers:
            return None, shown
        readings, left_out = self._readings("base" if adapter is None else str(adapter), pictures)
        having = [scorer for scorer in self._scorers if scorer.name not in left_out]
        found = measure(pictures, self._asked.prompts, self._domain, having, readings)
        left_out |= found.left_out
        for aim in goals(self._config.sweep, self._scorers) if self._config.sweep else ():
            if aim.name in left_out:
                raise NotScored(f"the sweep goes by {aim.name}, which has no number: {left_out[aim.name]}")
        return replace(found, labels=None, left_out=left_out), shown

    def _readings(self, name: str, pictures: list[Picture]) -> tuple[dict[str, Readings], dict[str, str]]:
        """Return what the models of scorers read, by scorer, and the reasons for those that have none. Models are loaded once."""
        found: dict[str, Readings] = {}
        left_out: dict[str, str] = {}
        for scorer in self._scorers:
            if not isinstance(scorer, ModelScorer):
                continue
            asked = {name: Asked(pictures, self._asked.prompts)}
            try:
                if scorer.name not in self._readers:
                    self._readers[scorer.name] = on_device(scorer.open_reader())
                read = partial(read_here, self._readers[scorer.name])
                found[scorer.name] = readings_of(self._config, scorer, asked, self._config.folder / "readings", read)[name]
            except NotScored as error:
                left_out[scorer.name] = str(error)
        return found, left_out

    def _draw(self, adapter: Path | None) -> list[Picture]:
        return self._artist.draw_all(generation_job(self._config, adapter, self._asked.prompts, self._asked.seeds))


def shown_indices(count: int) -> list[int]:
    """Return which of `count` pictures are shown."""
    return list(dict.fromkeys(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int).tolist()))


def save_pictures(pictures: list[Picture], folder: Path) -> None:
    """Write them as 0.png, 1.png … for the report."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")


def read_pictures(folder: Path) -> list[Picture]:
    """Return what `save_pictures` wrote."""
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

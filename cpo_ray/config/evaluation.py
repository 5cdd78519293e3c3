"""How pictures are drawn and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny

from cpo_ray.config.chosen import Chosen
from cpo_ray.config.registry import SCORERS
from cpo_ray.config.section import Free, Section


class ScorerSettings(Section):
    """The settings that all scorers have; one that can be told more has a subclass of its own."""

    places: ClassVar[tuple[str, ...]] = ()
    """Settings that are a local path or a hub id."""

    name: str
    """A registered scorer, or your own as "module:Class"."""

    def on_other_machines(self) -> Self:
        """Return the same settings for processes that work in another folder: with absolute paths."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        paths = {name: Path(value).expanduser() for name, value in given.items() if value and name in self.places}
        paths = {name: path for name, path in paths.items() if path.exists()}
        own = {name: value.absolute() for name, value in given.items() if isinstance(value, Path)}
        return self.model_copy(update=own | {name: str(path.absolute()) for name, path in paths.items()})


class ModelScorerSettings(ScorerSettings):
    """The settings of a scorer with a model of its own."""

    places: ClassVar[tuple[str, ...]] = ("weights",)

    weights: str
    """A folder or a file of safetensors, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""


class PromptScorerSettings(ModelScorerSettings):
    """The settings of a scorer whose model reads prompts, too."""

    places: ClassVar[tuple[str, ...]] = ("weights", "tokenizer")

    tokenizer: str | None = None
    """A folder or hub id with the vocabulary; by default it is the one beside the weights, or else the published one."""


#: The type of an entry of `evaluation.scorers`: a name alone, or a section with the name and what the scorer is told.
ChosenScorer = Annotated[SerializeAsAny[ScorerSettings], Chosen(SCORERS, "negatives")]


class Evaluation(Section):
    scorers: Free[tuple[ChosenScorer, ...]] = ()
    """The scorers of pictures: names, your own as "module:Class", or sections with the name and what the scorer is told.
    Without any, what the domain scores its pictures by."""
    pictures: PositiveInt = 240
    """Pictures per model, from the same prompts and noise for all models."""
    inference_steps: PositiveInt = 20
    guidance_scale: float = Field(default=2.0, ge=1)
    batch: PositiveInt = 30
    """Pictures that are drawn, or scored, together."""
    actors: Free[PositiveInt] = 2
    """Processes that draw pictures, and score them by models."""
    cpus_per_actor: Free[PositiveFloat] = 1.0
    gpus_per_actor: Free[float] = Field(default=0.0, ge=0)
    samples: int = Field(default=8, ge=0)
    """Pictures drawn at each checkpoint of a training, from fixed prompts and noise, shown in MLflow; 0 for none."""
    cpus_per_sample: Free[PositiveFloat] = 1.0
    """CPUs for drawing them. If training leaves fewer, they are drawn when it ends."""
    seed: int = Field(default=90_000, ge=0)
    """Seed of the evaluation's noise, which training and tuning never use."""

"""The door to a scorer: what it is called, which way is better, and a number for each picture or one for all of them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cpo_ray.config import Config, ConfigError
from cpo_ray.config.evaluation import ModelScorerSettings, ScorerSettings
from cpo_ray.config.registry import SCORERS
from cpo_ray.config.sweep.axis import ALIASES
from cpo_ray.core.prompts import Labels
from cpo_ray.core.statistics import Interval, format_number
from cpo_ray.evaluation.domain import Domain, Picture, domain_class

if TYPE_CHECKING:
    from cpo_ray.evaluation.scorers.readers.base import Reader, WeightFiles

#: Keys beside the scores in results, in Tune's reports and in the MLflow run of a training.
_TAKEN = ALIASES.keys() | {
    *("base", "best", "changes", "id", "label", "labels", "mlflow_run_id", "on_front", "rung", "seconds", "sentence", "status"),
    *("distance_to_reference", "gradient_norm", "lose", "loss", "margin", "seconds_waited_for_targets", "step", "win"),
    "unscored",
}
#: What a name is, so that no other number has the same key: "x_low" is an end of the interval of "x".
_NAME = r"(?!held_out_)[a-z][a-z0-9_]*(?<!_low)(?<!_high)(?<!_change)(?<!_unscored)"


class NotScored(RuntimeError):
    """A scorer has no number here, and the other ones go on; the message is a sentence that says why and what to do."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """The pictures of one model: picture i was asked for by prompts[i].

    `labels` are what the domain reads, if it can; None for a picture that it could not read. Pictures may lie on the disk and are
    read one by one where they are asked for, so do not collect them in a list.
    """

    pictures: Sequence[Picture]
    prompts: Sequence[str]
    labels: tuple[Labels | None, ...] | None
    readings: NDArray[np.float32] | None = None
    """(N, D), what the model of a `ModelScorer` reads from each picture."""
    reference: NDArray[np.float32] | None = None
    """(M, D), the same of the pictures that `ModelScorer.reference` names."""
    domain: Domain | None = None
    """The domain that read the labels, for a scorer that `asks` one."""


class Scorer(ABC):
    """One column of every table.

    It is made with its section of `evaluation.scorers`, or without arguments for its defaults, also by `--check`. So a model that
    it needs is loaded when it first scores.
    """

    settings: ClassVar[type[ScorerSettings]] = ScorerSettings
    """What it can be told. The class is imported wherever a configuration is read, so import what is heavy when it is needed."""
    name: ClassVar[str]
    """Its key in files and in MLflow, of small letters, digits and _."""
    title: ClassVar[str]
    """Heads its column."""
    better: ClassVar[Literal["lower", "higher"]]
    meaning: ClassVar[str]
    """What the number is, for reports and model cards: half a sentence."""
    caution: ClassVar[str] = ""
    """What whoever reads the number must know, for reports: whole sentences."""
    needs_labels: ClassVar[bool] = False
    """Whether it can only be had where the domain reads labels."""
    asks: ClassVar[type[Domain] | None] = None
    """The class of the domain that it asks about pictures, where it can only be had of one."""
    decimals: ClassVar[int | None] = None
    """Digits behind the point; None for three significant digits."""
    with_interval: ClassVar[bool] = True
    """Whether tables show its interval."""
    with_change: ClassVar[bool] = False
    """Whether tables show its paired change against the base."""

    def __init__(self, told: ScorerSettings | None = None) -> None:
        self.told = told or self.settings.model_validate({"name": self.name})

    @classmethod
    def text(cls, value: float, *, signed: bool = False) -> str:
        """A number as tables show it, with a true minus sign."""
        if cls.decimals is None:
            return ("+" if signed and value >= 0 else "") + format_number(value)
        return f"{value:{'+' if signed else ''}.{cls.decimals}f}".replace("-", "\N{MINUS SIGN}")

    @classmethod
    def interval_text(cls, interval: Interval, *, signed: bool = False) -> str:
        """An interval as tables show it, such as "2.77 [2.61, 2.93]"."""
        mean, low, high = (cls.text(value, signed=signed) for value in (interval.mean, interval.low, interval.high))
        return f"{mean} [{low}, {high}]"


class PictureScorer(Scorer):
    """A number for each picture; tables have their mean, with a bootstrap interval over pictures."""

    @abstractmethod
    def score(self, drawn: Drawn) -> NDArray[np.float64]:
        """(N,) numbers; NaN for a picture that cannot be scored, which every table tells."""


class SetScorer(Scorer):
    """A number for all pictures together."""

    @abstractmethod
    def distance(self, drawn: Drawn) -> Interval:
        """The number with its 95 % interval over pictures."""


class ModelScorer(Scorer):
    """A scorer, of pictures or of a set, whose numbers come from what a model of its own reads from each picture.

    The model is loaded in actors that share the pictures, and what it has read is kept by picture. `score` or `distance` finds it
    in `Drawn.readings`.
    """

    settings: ClassVar[type[ScorerSettings]] = ModelScorerSettings
    told: ModelScorerSettings
    licence: ClassVar[str]
    """The licence of the weights, as their publisher states it."""
    size: ClassVar[str]
    """The size of the weights, such as "1.7 GB"."""
    reads_prompts: ClassVar[bool] = True
    """Whether what it reads from a picture depends on the prompt."""

    def weights(self, *, download: bool = True) -> WeightFiles | None:
        """The files of the weights on this machine, fetched from the hub with `download`; None for a model without any.

        Raises NotScored where they are not to be had.
        """
        from cpo_ray.evaluation.scorers.readers.base import find_weights

        return find_weights(self.told, download=download)

    @abstractmethod
    def open_reader(self) -> Reader:
        """Load the model on the CPU. Raises NotScored where its weights are not to be had."""

    @abstractmethod
    def published_reader(self) -> Reader:
        """The published model without its weights, made on the current device: what the planner counts."""

    def reference(self, config: Config) -> Sequence[Picture] | None:
        """The pictures that the drawn ones are compared with, if the scorer needs any. Raises NotScored where there are none."""
        return None


class ModelPictureScorer(ModelScorer, PictureScorer):
    """A scorer whose model reads one number from each picture: the score."""

    better: ClassVar[Literal["lower", "higher"]] = "higher"
    decimals = 4
    with_change = True

    def score(self, drawn: Drawn) -> NDArray[np.float64]:
        """(N,) what was read."""
        assert drawn.readings is not None, "pictures are read before they are scored"
        return drawn.readings[:, 0].astype(np.float64)


def open_scorers(config: Config) -> tuple[Scorer, ...]:
    """The scorers that the configuration names, or else the domain's.

    Raises ConfigError for an unknown one, for one that does not say what it is, for two of one name, and for one that needs
    labels where nobody can read them, or another domain.
    """
    domain = domain_class(config.domain)
    found: dict[str, Scorer] = {}
    chosen: list[tuple[str, ScorerSettings | None]] = [(told.name, told) for told in config.evaluation.scorers]
    for name, told in chosen or [(name, None) for name in domain.scorers]:
        kind = SCORERS.load(name)
        if not (isinstance(kind, type) and issubclass(kind, PictureScorer | SetScorer)):
            raise ConfigError(
                f"scorer {name!r} is not a subclass of PictureScorer or SetScorer of cpo_ray.evaluation.scorers.base"
            )
        if problem := _unsaid(kind):
            raise ConfigError(f"scorer {name!r}: {problem}")
        if kind.needs_labels and not domain.reads_labels:
            raise ConfigError(
                f"evaluation.scorers names {name!r}, which needs labels, and nothing here can read them from pictures "
                f"(domain.use = {config.domain.use!r}); choose a domain that can, or leave the scorer out"
            )
        if kind.asks is not None and not issubclass(domain, kind.asks):
            raise ConfigError(
                f"evaluation.scorers names {name!r}, which asks a domain of the class {kind.asks.__name__}, and domain.use is "
                f"{config.domain.use!r}; choose such a domain, or leave the scorer out"
            )
        if kind.name in found:
            raise ConfigError(f"evaluation.scorers has two scorers of the name {kind.name!r}; name each once")
        found[kind.name] = kind(told)
    return tuple(found.values())


def _unsaid(kind: type[Scorer]) -> str | None:
    """Return what a scorer fails to say of itself, in a sentence; None where it says everything."""
    if missing := [said for said in ("name", "title", "better", "meaning") if not hasattr(kind, said)]:
        return f"its class has no {missing[0]!r}; every scorer says its name, title, better and meaning"
    if kind.better not in ("lower", "higher"):
        return f"its better is {kind.better!r}; it must be 'lower' or 'higher'"
    if not re.fullmatch(_NAME, kind.name) or kind.name in _TAKEN:
        return (
            f"its name is {kind.name!r}; a name is of small letters, digits and _, does not begin with held_out_ or end with "
            f"_low, _high, _change or _unscored, and is none of {', '.join(sorted(_TAKEN))}"
        )
    return None

"""The door to a scorer: what it is called, which way is better, and a number for each picture or one for all of them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cpo_ray.config import Config, ConfigError
from cpo_ray.config.registry import SCORERS
from cpo_ray.config.sweep.axis import ALIASES
from cpo_ray.core.prompts import Labels
from cpo_ray.core.statistics import Interval, format_number
from cpo_ray.evaluation.domain import Picture, domain_class

#: Keys beside the scores in results, in Tune's reports and in the MLflow run of a training.
_TAKEN = ALIASES.keys() | {
    *("base", "best", "changes", "id", "label", "labels", "mlflow_run_id", "on_front", "rung", "seconds", "sentence", "status"),
    *("distance_to_reference", "gradient_norm", "lose", "loss", "margin", "seconds_waited_for_targets", "step", "win"),
}
#: What a name is, so that no other number has the same key: "x_low" is an end of the interval of "x".
_NAME = r"(?!held_out_)[a-z][a-z0-9_]*(?<!_low)(?<!_high)(?<!_change)"


@dataclass(frozen=True, eq=False)
class Drawn:
    """The pictures of one model: picture i was asked for by prompts[i]. `labels` are what the domain reads, if it can."""

    pictures: Sequence[Picture]
    prompts: Sequence[str]
    labels: tuple[Labels, ...] | None


class Scorer(ABC):
    """One column of every table.

    It is made without arguments, also by `--check`, so a model that it needs is loaded when it first scores.
    """

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
    decimals: ClassVar[int | None] = None
    """Digits behind the point; None for three significant digits."""
    with_interval: ClassVar[bool] = True
    """Whether tables show its interval."""
    with_change: ClassVar[bool] = False
    """Whether tables show its paired change against the base."""

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
        """(N,) numbers."""


class SetScorer(Scorer):
    """A number for all pictures together."""

    @abstractmethod
    def distance(self, drawn: Drawn) -> Interval:
        """The number with its 95 % interval over pictures."""


def open_scorers(config: Config) -> tuple[Scorer, ...]:
    """The scorers that the configuration names, or else the domain's.

    Raises ConfigError for an unknown one, for one that does not say what it is, for two of one name, and for one that needs
    labels where nobody can read them.
    """
    domain = domain_class(config.domain)
    found: dict[str, Scorer] = {}
    for name in config.evaluation.scorers or domain.scorers:
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
        if kind.name in found:
            raise ConfigError(f"evaluation.scorers has two scorers of the name {kind.name!r}; name each once")
        found[kind.name] = kind()
    return tuple(found.values())


def _unsaid(kind: type[Scorer]) -> str | None:
    """What a scorer fails to say of itself, in a sentence; None where it says everything."""
    if missing := [said for said in ("name", "title", "better", "meaning") if not hasattr(kind, said)]:
        return f"its class has no {missing[0]!r}; every scorer says its name, title, better and meaning"
    if kind.better not in ("lower", "higher"):
        return f"its better is {kind.better!r}; it must be 'lower' or 'higher'"
    if not re.fullmatch(_NAME, kind.name) or kind.name in _TAKEN:
        return (
            f"its name is {kind.name!r}; a name is of small letters, digits and _, does not begin with held_out_ or end with "
            f"_low, _high or _change, and is none of {', '.join(sorted(_TAKEN))}"
        )
    return None

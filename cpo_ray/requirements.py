"""Figures that a pipeline requires of an evaluation, such as "negatives<=1.0", which holds if the whole interval lies there."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cpo_ray.config import ConfigError
from cpo_ray.evaluation.measure import Scores
from cpo_ray.evaluation.scorers.base import Scorer, SetScorer

SIDES: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(rf"\s*([a-z][a-z0-9_]*)(\.change)?\s*({'|'.join(SIDES)})\s*(\S+)\s*")


class RequirementMissed(RuntimeError):
    """A figure's interval does not lie where it was required to; the run itself went well."""

    exit_code = 3


@dataclass(frozen=True)
class Requirement:
    """A scorer's number, or its paired change against the base, and where its interval must lie."""

    scorer: str
    change: bool
    side: str
    bound: float

    @classmethod
    def read(cls, text: str) -> Requirement:
        """Read "negatives<=1.0" or "negatives.change<0". Raises ConfigError for anything else."""
        found = _FORM.fullmatch(text)
        try:
            assert found is not None
            return cls(found[1], bool(found[2]), found[3], float(found[4]))
        except (AssertionError, ValueError):
            raise ConfigError(
                f"--require {text!r} is no requirement; write a scorer's name or NAME.change, one of {' '.join(SIDES)}, and a "
                "number, such as 'negatives<=1.0'"
            ) from None

    def __str__(self) -> str:
        return f"{self.scorer}{'.change' if self.change else ''}{self.side}{self.bound:g}"

    def missed(self, found: Scores) -> str | None:
        """Say in half a sentence how the figure's interval misses; None if it holds."""
        interval = (found.changes if self.change else found.intervals).get(self.scorer)
        if interval is None:
            return f"{self} has no number"
        worst = interval.high if "<" in self.side else interval.low
        if SIDES[self.side](worst, self.bound):
            return None
        lost = f", {found.unscored[self.scorer]} pictures unscored" if self.scorer in found.unscored else ""
        return f"{self} is missed: {interval.mean:.4g}, 95 % interval {interval.low:.4g} to {interval.high:.4g}{lost}"


def read_requirements(texts: Sequence[str], scorers: Sequence[Scorer]) -> list[Requirement]:
    """Read what is required of the numbers of these scorers.

    Raises ConfigError for a text that is no requirement, for a name that no scorer has, and for the change of a set's number.
    """
    known, found = {scorer.name: scorer for scorer in scorers}, [Requirement.read(text) for text in texts]
    for one in found:
        if one.scorer not in known:
            raise ConfigError(
                f"--require {one} names {one.scorer!r}, by which nothing is scored here; "
                f"choose among {', '.join(known) or 'none (name evaluation.scorers or a domain)'}"
            )
        if one.change and isinstance(known[one.scorer], SetScorer):
            raise ConfigError(f"--require {one}: {one.scorer} is one number of all pictures together and has no paired change")
    return found


def require(required: Sequence[Requirement], model: str, models: Mapping[str, Scores]) -> None:
    """Raise RequirementMissed if an interval of the model misses, or the model is not among those that were measured."""
    if required and model not in models:
        raise RequirementMissed(f"{model} was not trained, so {required[0]} cannot hold")
    missed = [sentence for one in required if (sentence := one.missed(models[model])) is not None]
    if missed:
        raise RequirementMissed(f"{model}: {'; '.join(missed)}")

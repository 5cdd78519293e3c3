"""What a sweep goes by: scorers, the one that counts first and one that keeps it honest."""

from __future__ import annotations

from collections.abc import Sequence

from cpo_ray.config import Config, ConfigError
from cpo_ray.config.sweep import Sweep
from cpo_ray.evaluation.domain import open_domain
from cpo_ray.evaluation.measure import Scores
from cpo_ray.evaluation.scorers.base import Scorer, open_scorers


def scorers_of(config: Config) -> tuple[Scorer, ...]:
    """What the validation pictures of a sweep are scored by. Raises ConfigError as `open_scorers` does."""
    return open_scorers(config, open_domain(config))


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

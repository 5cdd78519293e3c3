"""The section that describes a sweep. No torch, no Ray."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from cpo_ray.config.section import Free, Section
from cpo_ray.config.sweep.axis import Axis, flat, ordered


class Sweep(Section):
    """The settings of `tune/search_cpo.py`: trials of stage 2 that share one expert and one set of targets."""

    space: Annotated[dict[str, Axis], BeforeValidator(flat), AfterValidator(ordered)]
    """The searched settings: keys of the configuration, or the short names in `sweep.axis.ALIASES`, and their values. Settings of
    stage 2 can be searched, and the share of the pictures that it sees; the expert has seen `data.proportion` of them. Settings
    left out stay as in the rest of the configuration."""
    search: Literal["grid", "random", "tpe", "multi_objective"] = "grid"
    """How points are chosen. "grid": every combination. "random": random draws. "tpe": Optuna's TPE on the first of `goals`.
    "multi_objective": TPE on both together."""
    goals: tuple[str, ...] = Field(default=("negatives", "distance"), min_length=1, max_length=2)
    """The scorers that a sweep goes by: what it is to improve, and what must not get worse for it."""
    trials: Free[PositiveInt | None] = None
    """Number of trials, those of a resumed sweep included. A grid without it runs all its points."""
    minutes: Free[PositiveFloat | None] = None
    """Time for all trials of one call. Unfinished trials continue with --resume."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """The rule that stops trials that fall behind in the first goal: nothing, successive halving, or the median of the others."""
    rungs: PositiveInt = 3
    """How often a trial is measured, evenly spaced over its training, the last time at its end."""
    grace_rungs: PositiveInt = 1
    """Rungs that every trial reaches before a scheduler may stop it."""
    pictures: PositiveInt = 96
    """Pictures drawn and measured at a rung: the same validation prompts and noise for all trials, never those of the test."""
    held_out: PositiveInt = 64
    """Validation pictures for the losses on held-out targets, at most as many as exist."""
    choice: Free[Literal["bounded", "first", "second", "knee"]] = "bounded"
    """How the best trial is chosen. "bounded": the best in the first goal among those that are behind the best in the second by
    at most `slack`. "first", "second": the best in one. "knee": the point of the Pareto front nearest to the ideal, both scaled
    to 0 … 1."""
    slack: Free[float] = Field(default=0.1, ge=0)
    """Share of the second goal's best value by which "bounded" allows a trial to be worse."""
    max_concurrent: Free[PositiveInt | None] = None
    """Run fewer trials at once than would fit."""
    retries: Free[int] = Field(default=1, ge=0)
    """How often a crashed trial restarts from its last checkpoint before it counts as failed."""

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        if not self.space:
            raise ValueError("there is nothing to search; name at least one axis in sweep.space, such as omega = [1.0, 2.0, 3.0]")
        ranges = [name for name, axis in self.space.items() if not axis.values]
        if self.search == "grid" and ranges:
            raise ValueError(f"a grid needs values, and {ranges[0]} is a range; list its values or choose another search")
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"search {self.search!r} has no end of its own; say how many trials, such as trials = 20")
        if self.scheduler != "none" and self.grace_rungs >= self.rungs:
            raise ValueError(f"a scheduler can stop nothing after {self.grace_rungs} of {self.rungs} rungs; lower grace_rungs")
        return self

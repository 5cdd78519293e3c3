"""The section that describes a sweep. No torch, no Ray."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cpo_ray.config.section import Section

#: What may be searched, with the bound that every value of it must lie above and whether the bound itself is a value.
BOUNDS = {
    "omega": (0.0, True),
    "omega_win": (0.0, True),
    "omega_lose": (0.0, True),
    "beta": (0.0, False),
    "learning_rate": (0.0, False),
    "proportion": (0.0, False),
}


class Axis(Section):
    """One searched number: a list of values, `[1.0, 2.0]`, or a range, `{ low = 1.0, high = 3.0 }`."""

    values: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Draw from a range evenly by magnitude instead of by value."""

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_its_values(cls, given: Any) -> Any:
        return {"values": given} if isinstance(given, list | tuple) else given

    @model_validator(mode="after")
    def _values_or_range(self) -> Axis:
        if bool(self.values) == (self.low is not None or self.high is not None):
            raise ValueError("give either a list of values or a range { low = …, high = … }")
        if len(set(self.values)) < len(self.values):
            raise ValueError("a value stands in the list twice; name each once")
        if not self.values and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError("a range needs both low and high, and low must be less than high")
        if self.log and self.least <= 0:
            raise ValueError("a range by magnitude must begin above 0")
        return self

    @property
    def least(self) -> float:
        """The smallest possible value."""
        return min(self.values) if self.low is None else self.low

    @property
    def largest(self) -> float:
        """The largest possible value."""
        return max(self.values) if self.high is None else self.high


class Space(Section):
    """What is searched; whatever is left out stays as the rest of the configuration has it."""

    omega: Axis | None = None
    """ω_w and ω_l tied to one value (the paper's Table S4: 1, 1.5, 2, 2.5, 3)."""
    omega_win: Axis | None = None
    """ω_w alone, not together with `omega`."""
    omega_lose: Axis | None = None
    """ω_l alone, not together with `omega`."""
    beta: Axis | None = None
    learning_rate: Axis | None = None
    objective: tuple[Literal["cpo", "cpo_s"], ...] = ()
    proportion: Axis | None = None
    """Share of the training pictures that stage 2 sees (Table 3); the expert has seen `data.proportion` of them."""

    @model_validator(mode="after")
    def _consistent(self) -> Space:
        if not self.axes and not self.objective:
            raise ValueError("there is nothing to search; name at least one axis, such as omega = [1.0, 2.0, 3.0]")
        if self.omega and (self.omega_win or self.omega_lose):
            raise ValueError("omega ties omega_win and omega_lose to one value; search either omega or the two")
        if len(set(self.objective)) < len(self.objective):
            raise ValueError("an objective stands in the list twice; name each once")
        for name, axis in self.axes.items():
            bound, included = BOUNDS[name]
            if axis.least < bound or (axis.least == bound and not included):
                raise ValueError(f"{name} can become {axis.least:g}; it must be {'at least' if included else 'above'} {bound:g}")
        if self.proportion and self.proportion.largest > 1:
            raise ValueError(f"proportion can become {self.proportion.largest:g}; it is a share and at most 1")
        return self

    @property
    def axes(self) -> dict[str, Axis]:
        """The searched numbers, in the order in which they are named in labels and tables."""
        found = {name: getattr(self, name) for name in BOUNDS}
        return {name: axis for name, axis in found.items() if axis is not None}


class Sweep(Section):
    """The settings of `tune/search_cpo.py`: trials of stage 2 that share one expert and one set of targets."""

    space: Space
    search: Literal["grid", "random", "tpe", "multi_objective"] = "grid"
    """How points are chosen. "grid": every combination. "random": random draws. "tpe": Optuna's TPE on the first of `goals`.
    "multi_objective": TPE on both together."""
    goals: tuple[str, ...] = Field(default=("negatives", "distance"), min_length=1, max_length=2)
    """The scorers that a sweep goes by: what it is to improve, and what must not get worse for it."""
    trials: PositiveInt | None = None
    """Number of trials, those of a resumed sweep included. A grid without it runs all its points."""
    minutes: PositiveFloat | None = None
    """Time for all trials of one call. Unfinished trials continue with --resume."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """What stops trials that fall behind in the first goal: nothing, successive halving, or the median of the others."""
    rungs: PositiveInt = 3
    """How often a trial is measured, evenly spaced over its training, the last time at its end."""
    grace_rungs: PositiveInt = 1
    """Rungs that every trial reaches before a scheduler may stop it."""
    pictures: PositiveInt = 96
    """Pictures drawn and measured at a rung: the same validation prompts and noise for all trials, never those of the test."""
    held_out: PositiveInt = 64
    """Validation pictures for the losses on held-out targets, at most as many as exist."""
    choice: Literal["bounded", "first", "second", "knee"] = "bounded"
    """How the best trial is chosen. "bounded": the best in the first goal among those that are behind the best in the second by
    at most `slack`. "first", "second": the best in one. "knee": the point of the Pareto front nearest to the ideal, both scaled
    to 0 … 1."""
    slack: float = Field(default=0.1, ge=0)
    """Share of the best value of the second goal by which "bounded" lets a trial be behind."""
    max_concurrent: PositiveInt | None = None
    """Run fewer trials at once than would fit."""
    retries: int = Field(default=1, ge=0)
    """How often a crashed trial restarts from its last checkpoint before it counts as failed."""

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        ranges = [name for name, axis in self.space.axes.items() if not axis.values]
        if self.search == "grid" and ranges:
            raise ValueError(f"a grid needs values, and {ranges[0]} is a range; list its values or choose another search")
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"search {self.search!r} has no end of its own; say how many trials, such as trials = 20")
        if self.scheduler != "none" and self.grace_rungs >= self.rungs:
            raise ValueError(f"a scheduler can stop nothing after {self.grace_rungs} of {self.rungs} rungs; lower grace_rungs")
        return self

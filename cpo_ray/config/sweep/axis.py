"""One searched setting of a sweep, and short names for the most searched settings. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import model_serializer, model_validator

from cpo_ray.config.section import Section

#: What a setting can be set to by a sweep.
Value = bool | int | float | str


@dataclass(frozen=True)
class Alias:
    """The settings behind a short name, which all get the same value, and its symbol in labels and charts."""

    keys: tuple[str, ...]
    symbol: str


#: Short name → its settings. Axes are ordered as here; those without a short name follow as they are given.
ALIASES: Mapping[str, Alias] = {
    "omega": Alias(("preference.objective.omega_win", "preference.objective.omega_lose"), "ω"),
    "omega_win": Alias(("preference.objective.omega_win",), "ω_w"),
    "omega_lose": Alias(("preference.objective.omega_lose",), "ω_l"),
    "beta": Alias(("preference.objective.beta",), "β"),
    "learning_rate": Alias(("preference.optimization.learning_rate",), "rate"),
    "proportion": Alias(("data.proportion",), "share"),
    "objective": Alias(("preference.objective.name",), "objective"),
}
_SHORT = {alias.keys: name for name, alias in ALIASES.items()}


def keys_of(name: str) -> tuple[str, ...]:
    """Return the dotted keys that an axis of this name sets."""
    return ALIASES[name].keys if name in ALIASES else (name,)


def symbols(names: Iterable[str]) -> dict[str, str]:
    """Return the axes' names for labels and charts: the symbol, or the last part of the key if it is unique."""
    names = list(names)
    last = {name: ALIASES[name].symbol if name in ALIASES else name.rpartition(".")[2] for name in names}
    return {name: short if list(last.values()).count(short) == 1 else name for name, short in last.items()}


class Axis(Section):
    """One searched setting: a list of values, `[1.0, 2.0]`, or a range of numbers, `{ low = 1.0, high = 3.0 }`."""

    values: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Draw from a range evenly by magnitude instead of by value."""

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_its_values(cls, given: Any) -> Any:
        if isinstance(given, list | tuple):
            odd = [value for value in given if not isinstance(value, Value)]
            if odd:
                raise ValueError(f"{odd[0]!r} is in the list; a searched value is a number, a text, true or false")
            return {"values": given}
        if not isinstance(given, dict | Axis):
            raise ValueError("give a list of values, such as [1.0, 2.0], or a range { low = …, high = … }")
        return given

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

    @model_serializer
    def _as_given(self) -> list[Value] | dict[str, Value | None]:
        return list(self.values) or {"low": self.low, "high": self.high, "log": self.log}

    @property
    def ends(self) -> tuple[Value, ...]:
        """All values of a list, or both ends of a range."""
        return self.values if self.low is None or self.high is None else (self.low, self.high)

    @property
    def numbers(self) -> tuple[float, ...]:
        """`ends`, if all of them are numbers; empty for texts, true and false."""
        found = tuple(value for value in self.ends if isinstance(value, int | float) and not isinstance(value, bool))
        return found if len(found) == len(self.ends) else ()

    @property
    def least(self) -> float:
        """The smallest possible number."""
        return min(self.numbers)

    @property
    def largest(self) -> float:
        """The largest possible number."""
        return max(self.numbers)

    @property
    def by_magnitude(self) -> bool:
        """Whether its numbers lie orders of magnitude apart, and would crowd at one end of an even axis."""
        return bool(self.numbers) and (self.log or (self.least > 0 and self.largest / self.least >= 30))


def flat(given: Any, prefix: str = "") -> Any:
    """Return axes by dotted key, from a table whose keys may be nested tables, as TOML reads `a.b = [1, 2]`."""
    if not isinstance(given, dict):
        return given
    found: dict[str, Any] = {}
    for key, value in given.items():
        inside = isinstance(value, dict) and value and all(isinstance(each, dict | list) for each in value.values())
        axis = not inside or value.keys() & Axis.model_fields.keys()
        found |= {f"{prefix}{key}": value} if axis else flat(value, f"{prefix}{key}.")
    return found


def ordered(space: Mapping[str, Axis]) -> dict[str, Axis]:
    """Return the axes under their short names, if they have one, in the order of ALIASES.

    Raises ValueError if two of them set the same setting.
    """
    named: dict[str, Axis] = {}
    setting: dict[str, str] = {}
    for given, axis in space.items():
        name = _SHORT.get((given,), given)
        for key in keys_of(name):
            if (other := setting.setdefault(key, given)) != given:
                raise ValueError(f"{other} and {given} both set {key}; search one of the two")
        named[name] = axis
    places = list(ALIASES)
    return dict(sorted(named.items(), key=lambda item: places.index(item[0]) if item[0] in places else len(places)))

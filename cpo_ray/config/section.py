"""The base of every section of a configuration. No torch, no Ray."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict

Value = TypeVar("Value")


class ConfigError(ValueError):
    """The configuration is not usable; the message says which key, what was found and what is expected."""


class Section(BaseModel):
    """A section forbids unknown keys and never changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FreeOnResume:
    """Marks a setting that a resumed run may change: it says how something is computed, not what comes out."""


#: The type of such a setting, as in `workers: Free[PositiveInt] = 1`.
Free = Annotated[Value, FreeOnResume()]


def free_on_resume(section: type[Section]) -> frozenset[str]:
    """Return the names of a section's settings that a resumed run may change."""
    fields = section.model_fields.items()
    return frozenset(name for name, field in fields if any(isinstance(mark, FreeOnResume) for mark in field.metadata))

"""The base of every section of a configuration. No torch, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

Value = TypeVar("Value")


class ConfigError(ValueError):
    """The configuration is not usable; the message says which key, what was found and what is expected."""


class Section(BaseModel):
    """A section forbids unknown keys and never changes after it was read. In its paths ~ is the home folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="after")
    @classmethod
    def _in_the_home_folder(cls, value: Any) -> Any:
        return at_home(value) if isinstance(value, Path) else value


def at_home(path: Path) -> Path:
    """Return a path with the home folder for a leading ~. Raises ConfigError if there is no such home folder."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"nobody knows the home folder in {path}; write the folder out, or set HOME") from None


class FreeOnResume:
    """Marks a setting that a resumed run may change: it says how something is computed, not what comes out."""


#: The type of such a setting, as in `workers: Free[PositiveInt] = 1`.
Free = Annotated[Value, FreeOnResume()]


def free_on_resume(section: type[Section]) -> frozenset[str]:
    """Return the names of a section's settings that a resumed run may change."""
    fields = section.model_fields.items()
    return frozenset(name for name, field in fields if any(isinstance(mark, FreeOnResume) for mark in field.metadata))

"""What every section of the configuration is made of. No torch, no Ray."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration is not usable; the message says which key, what was found and what is expected."""


class Section(BaseModel):
    """A section forbids unknown keys and does not change after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

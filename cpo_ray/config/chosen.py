"""Sections whose fields depend on a name in them: a registered name, or "module:name"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from cpo_ray.config.registry import Registry
from cpo_ray.config.section import ConfigError, Section


@dataclass(frozen=True, eq=False)
class Chosen:
    """Marks such a section, as in `objective: Annotated[SerializeAsAny[ObjectiveSettings], Chosen(OBJECTIVES, "cpo_s")]`.

    The name stands under `key`. The registered value has an attribute `settings`, the class that reads the section; it is
    imported when a configuration is read. A bare name stands for its defaults, and a section without a name takes the `default`.
    """

    registry: Registry
    default: str
    key: str = "name"

    def table(self, given: Any) -> dict[str, Any]:
        """Return the section as a table with its name. Raises ConfigError if it is neither a name nor a table."""
        if isinstance(given, str):
            return {self.key: given}
        if isinstance(given, dict):
            return {self.key: self.default} | given
        raise ConfigError(f"expected a name, such as {self.default!r}, or a section with {self.key} = {self.default!r}")

    def form(self, given: Any) -> type[Section]:
        """Return the class that reads the section. Raises ConfigError for a name that cannot be chosen here."""
        name = self.table(given)[self.key]
        if not isinstance(name, str):
            raise ConfigError(f"{self.key} is {name!r}; choose one of {', '.join(self.registry.names)}")
        found = self.registry.load(name)
        settings = getattr(found, "settings", None)
        if not (isinstance(settings, type) and issubclass(settings, Section) and self.key in settings.model_fields):
            raise ConfigError(
                f"{self.registry.kind} {name!r} has no class `settings` with a key {self.key!r}; {found!r} cannot be chosen here"
            )
        return settings

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def _read(self, given: Any) -> Section:
        return given if isinstance(given, Section) else self.form(given).model_validate(self.table(given))

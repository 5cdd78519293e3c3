"""What a key of a configuration leads to: its type, its marks and the value that was given for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from cpo_ray.config.chosen import Chosen
from cpo_ray.config.section import ConfigError, Section


@dataclass(frozen=True)
class Place:
    """One key, or one element of a list, of a configuration that need not be valid. `given` is None where it was left out."""

    annotation: Any
    marks: tuple[Any, ...]
    given: Any

    @property
    def chosen(self) -> Chosen | None:
        """How its section is chosen, where that is so."""
        return next((mark for mark in self.marks if isinstance(mark, Chosen)), None)

    @property
    def section(self) -> type[Section] | None:
        """The class of the section that lies here; None where there is none, or where it is chosen by a wrong name."""
        if self.chosen is not None:
            try:
                return self.chosen.form({} if self.given is None else self.given)
            except ConfigError:
                return None
        kinds = (self.annotation, *get_args(self.annotation))  # `Sweep | None` holds the section Sweep
        return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)

    def inside(self, step: str | int) -> Place | None:
        """The place of a key of the section, or of an element of the list, that lies here; None where there is none."""
        if isinstance(step, int):
            element = get_args(self.annotation)[0]
            marks = element.__metadata__ if get_origin(element) is Annotated else ()
            return Place(element, marks, self.given[step])
        section = self.section
        if section is None or step not in section.model_fields:
            return None
        field = section.model_fields[step]
        given = self.given.get(step) if isinstance(self.given, dict) else None
        return Place(field.annotation, tuple(field.metadata), given)


def place(schema: type[Section], steps: Iterable[str | int], tree: Any) -> Place | None:
    """Where keys and positions lead to in a configuration of the schema, given as a tree; None where they lead to nothing."""
    found: Place | None = Place(schema, (), tree)
    for step in steps:
        found = found and found.inside(step)
    return found

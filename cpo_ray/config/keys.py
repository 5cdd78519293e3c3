"""Follow a key into a configuration: its type, its marks and the given value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from cpo_ray.config.chosen import Chosen
from cpo_ray.config.section import ConfigError, Section


@dataclass(frozen=True)
class Place:
    """One key, or one element of a list, in a configuration that may be invalid. `given` is None if it was left out."""

    annotation: Any
    marks: tuple[Any, ...]
    given: Any

    @property
    def chosen(self) -> Chosen | None:
        """How its section is chosen, if it is chosen by a name."""
        return next((mark for mark in self.marks if isinstance(mark, Chosen)), None)

    @property
    def section(self) -> type[Section] | None:
        """The class of the section here; None if there is none, or it is chosen by a wrong name."""
        if self.chosen is not None:
            try:
                return self.chosen.form({} if self.given is None else self.given)
            except ConfigError:
                return None
        return next((kind for kind in _kinds(self.annotation) if isinstance(kind, type) and issubclass(kind, Section)), None)

    def inside(self, step: str | int) -> Place | None:
        """Return the place of a key in the section or table here, or of an element of the list; None if there is none."""
        section = self.section
        if section is not None:
            field = section.model_fields.get(str(step))
            return None if field is None else Place(field.annotation, tuple(field.metadata), _of(self.given, step))
        for kind in _kinds(self.annotation):
            elements = get_args(kind)
            if get_origin(kind) is dict:
                return _element(elements[1], _of(self.given, step))
            if get_origin(kind) in (list, tuple) and isinstance(step, int):
                same = len(elements) == 1 or elements[1] is Ellipsis
                return _element(elements[0 if same else step], self.given[step])
        return None

    def every_key(self) -> Iterator[str]:
        """Yield every dotted key of the section here and of the sections in it."""
        assert self.section is not None, "only sections have keys"
        for name in self.section.model_fields:
            found = self.inside(name)
            if found is not None and found.section is not None:
                yield from (f"{name}.{key}" for key in found.every_key())
            else:
                yield name


def _kinds(annotation: Any) -> Iterator[Any]:
    """Return the type, or the members of a union, without their marks."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _kinds(each)
    else:
        yield annotation


def _element(annotation: Any, given: Any) -> Place:
    return Place(annotation, getattr(annotation, "__metadata__", ()), given)


def _of(given: Any, key: str | int) -> Any:
    return given.get(key) if isinstance(given, dict) else None


def place(schema: type[Section], steps: Iterable[str | int], tree: Any) -> Place | None:
    """Follow keys and positions into a configuration of the schema, given as a tree; None if they lead nowhere."""
    found: Place | None = Place(schema, (), tree)
    for step in steps:
        found = found and found.inside(step)
    return found

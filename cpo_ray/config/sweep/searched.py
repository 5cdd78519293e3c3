"""Apply the axes of a sweep to a configuration, and check all their values. No torch, no Ray.

Bounds and types are those of the configuration's own settings: a value is checked by validating a configuration with it.
"""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from cpo_ray.config.keys import Place, place
from cpo_ray.config.section import ConfigError, FreeOnResume, Section
from cpo_ray.config.sweep.axis import ALIASES, Axis, Value, keys_of

#: One value for each searched setting, under the axes' names.
Point = dict[str, Value]
#: An axis, the value that is wrong with it ({} for the whole axis), and why.
Problem = tuple[str, Any, str]


def with_values(schema: type[Section], tree: Mapping[str, Any], point: Mapping[str, Value]) -> dict[str, Any]:
    """Return a copy of a configuration's tree with the point's values in it.

    Names that choose the form of their section, such as the objective's, come first. Settings that the new form lacks are left
    out, whether they come from the tree or from the point.
    """
    changed = copy.deepcopy(dict(tree))
    settings = [(key.split("."), value) for name, value in point.items() for key in keys_of(name)]
    for steps, value in sorted(settings, key=lambda setting: not _chooses(schema, changed, setting[0])):
        section = place(schema, steps[:-1], changed)
        if section is None or section.inside(steps[-1]) is None:
            continue
        inside = _entered(changed, steps[:-1])
        inside[steps[-1]] = value
        if _chooses(schema, changed, steps):
            form = place(schema, steps[:-1], changed)
            known = form.section.model_fields if form and form.section else inside
            for other in inside.keys() - known:
                del inside[other]
    return changed


def applicable(schema: type[Section], tree: Mapping[str, Any], point: Mapping[str, Value]) -> Point:
    """Return the point without settings that its choices lack, such as those of another objective."""
    changed = with_values(schema, tree, point)
    return {name: value for name, value in point.items() if any(place(schema, key.split("."), changed) for key in keys_of(name))}


def value_at(tree: Mapping[str, Any], name: str) -> Value | None:
    """Return a configuration tree's value for an axis; None if it has none."""
    for key in keys_of(name):
        *sections, last = key.split(".")
        inside: Any = tree
        for section in sections:
            inside = inside.get(section, {})
        if last in inside:
            found: Value | None = inside[last]
            return found
    return None


def choices(schema: type[Section], tree: Mapping[str, Any], space: Mapping[str, Axis]) -> dict[str, Axis]:
    """Return the axes that choose the form of a section."""
    return {name: axis for name, axis in space.items() if any(_chooses(schema, tree, key.split(".")) for key in keys_of(name))}


def end_points(schema: type[Section], tree: Mapping[str, Any], space: Mapping[str, Axis]) -> Iterator[tuple[str, Point]]:
    """Yield, with the axis's name, points with one axis at one of its ends and every other axis at its first end.

    They cover every combination of choices. Axes that choose come first.
    """
    choosing = choices(schema, tree, space)
    first = {name: axis.ends[0] for name, axis in space.items()}
    for chosen in itertools.product(*(axis.ends for axis in choosing.values())):
        start = first | dict(zip(choosing, chosen, strict=True))
        for name in choosing:
            yield name, applicable(schema, tree, start)
        for name, axis in space.items():
            if name not in choosing:
                points = (applicable(schema, tree, start | {name: value}) for value in axis.ends)
                yield from ((name, point) for point in points if name in point)


def checked(schema: type[Section], tree: Mapping[str, Any], space: Mapping[str, Axis]) -> dict[str, Axis]:
    """Return the space with every value in the type of its setting. `tree` is the rest of the configuration, which is valid.

    Raises a pydantic ValidationError at `sweep.space` for a setting that cannot be searched or a value that it cannot have.
    """
    trees = _chosen(schema, tree, space)
    _raise([(name, {}, sentence) for name in space if (sentence := _refusal(schema, trees, name))])
    problems: dict[tuple[str | None, str], Problem] = {}
    found: dict[str, dict[Value, Value]] = {name: {} for name in space}
    for name, point in end_points(schema, tree, space):
        try:
            config = schema.model_validate(with_values(schema, tree, point)).model_dump(mode="json")
        except ValidationError as error:
            for problem in error.errors():
                own = next((other for other in point if ".".join(map(str, problem["loc"])) in keys_of(other)), None)
                sentence = problem["msg"].removeprefix("Value error, ")
                problems.setdefault((own, sentence), (own or name, point[own or name], sentence))
        else:
            value = value_at(config, name)
            assert value is not None, "a searched setting has a value"
            found[name][point[name]] = value
    _raise(list(problems.values()))
    return {name: _of_type(name, axis, found[name]) for name, axis in space.items()}


def _chosen(schema: type[Section], tree: Mapping[str, Any], space: Mapping[str, Axis]) -> list[dict[str, Any]]:
    """Return the tree with every combination of choices. Raises a ValidationError for a name that does not exist."""
    trees, problems = [dict(tree)], []
    for name, axis in choices(schema, tree, space).items():
        section = place(schema, keys_of(name)[0].split(".")[:-1], tree)
        assert section is not None and section.chosen is not None
        for value in axis.ends:
            try:
                section.chosen.form({section.chosen.key: value})
            except ConfigError as error:
                problems.append((name, value, str(error)))
        trees = [with_values(schema, each, {name: value}) for each in trees for value in axis.ends]
    _raise(problems)
    return trees


def _of_type(name: str, axis: Axis, values: Mapping[Value, Value]) -> Axis:
    if axis.values:
        return Axis.model_validate([values[value] for value in axis.values])
    low, high = (values[end] for end in axis.ends)
    if not isinstance(low, int | float) or isinstance(low, bool):
        _raise([(name, {}, "a range is for numbers; list the values instead")])
    return axis.model_copy(update={"low": low, "high": high})


def _raise(problems: list[Problem]) -> None:
    """Raise a ValidationError with all problems, if there are any."""
    if problems:
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("searched", "{sentence}", {"sentence": sentence}),
                loc=("sweep", "space", name),
                input=value,
            )
            for name, value, sentence in problems
        ]
        raise ValidationError.from_exception_data("sweep.space", errors)


def _refusal(schema: type[Section], trees: list[dict[str, Any]], name: str) -> str | None:
    """Return why a setting cannot be searched; None if it can. `trees` have every combination of choices."""
    known = [found for key in keys_of(name) for tree in trees if (found := place(schema, key.split("."), tree))]
    if not known:
        return f"there is no such setting{_hint(schema, trees, name)}"
    if not all(_of_stage_two(key) for key in keys_of(name)):
        return (
            "only settings of stage 2 can be searched, those below `preference` and data.proportion: "
            "all trials share one expert, one data set and one set of targets"
        )
    if any(isinstance(mark, FreeOnResume) for mark in known[0].marks):
        return (
            "a resumed run may change this setting, since it does not change what a training learns; there is nothing to search"
        )
    if known[0].section is not None:
        return f"this is a whole section; search its settings, such as {name}.{next(known[0].every_key())}"
    return None


def _of_stage_two(key: str) -> bool:
    return key.startswith("preference.") or key == "data.proportion"


def _hint(schema: type[Section], trees: list[dict[str, Any]], name: str) -> str:
    """Say what was probably meant, and what exists."""
    known = dict.fromkeys(key for tree in trees for key in Place(schema, (), tree).every_key() if _of_stage_two(key))
    by_last = {key.rpartition(".")[2]: key for key in known} | {key: key for key in (*known, *ALIASES)}
    near = difflib.get_close_matches(name, by_last, 1)
    meant = f"; did you mean {by_last[near[0]]!r}?" if near else ";"
    return f"{meant} what can be searched is {', '.join(ALIASES)}, or any key below `preference`, such as 'preference.lora.rank'"


def _chooses(schema: type[Section], tree: Mapping[str, Any], steps: list[str]) -> bool:
    """Return whether a key is the name that chooses the form of its section."""
    section = place(schema, steps[:-1], tree)
    return section is not None and section.chosen is not None and section.chosen.key == steps[-1]


def _entered(tree: dict[str, Any], sections: list[str]) -> dict[str, Any]:
    for section in sections:
        tree = tree.setdefault(section, {})
    return tree

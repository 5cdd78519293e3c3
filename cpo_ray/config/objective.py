"""What every objective of stage 2 is told. No torch, no Ray."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from cpo_ray.config.chosen import Chosen
from cpo_ray.config.registry import OBJECTIVES
from cpo_ray.config.section import Section


class ObjectiveSettings(Section):
    """The settings that all objectives have; one that can be told more has a subclass of its own."""

    name: str
    """An objective of the package, or your own as "module:name"."""
    most_negatives: int | None = Field(default=None, ge=0)
    """Train on pictures with at most so many negative attributes; without it on all."""

    def completed(self, main: ObjectiveSettings) -> ObjectiveSettings:
        """These settings with the values of `main` for those that were not given here and that both classes add."""
        added = type(self).model_fields.keys() & type(main).model_fields.keys() - ObjectiveSettings.model_fields.keys()
        taken = {name: getattr(main, name) for name in added - self.model_fields_set}
        return type(self).model_validate(self.model_dump(exclude_unset=True) | taken)


#: The type of a setting that is an objective: a name alone, or a section with the name and what the objective is told.
ChosenObjective = Annotated[SerializeAsAny[ObjectiveSettings], Chosen(OBJECTIVES, "cpo_s")]

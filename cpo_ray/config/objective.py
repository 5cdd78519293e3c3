"""The settings of every objective of stage 2. No torch, no Ray."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from cpo_ray.config.chosen import Chosen
from cpo_ray.config.registry import OBJECTIVES
from cpo_ray.config.section import Section


class ObjectiveSettings(Section):
    """The settings that all objectives have. An objective with more has a subclass."""

    name: str
    """A registered objective, or your own as "module:name"."""
    most_negatives: int | None = Field(default=None, ge=0)
    """Train on pictures with at most this many negative attributes; by default on all."""

    def completed(self, main: ObjectiveSettings) -> ObjectiveSettings:
        """Return these settings, with missing values taken from `main` where both classes add the same setting."""
        added = type(self).model_fields.keys() & type(main).model_fields.keys() - ObjectiveSettings.model_fields.keys()
        taken = {name: getattr(main, name) for name in added - self.model_fields_set}
        return type(self).model_validate(self.model_dump(exclude_unset=True) | taken)


#: The type of a setting that is an objective: a name alone, or a section with the name and its settings.
ChosenObjective = Annotated[SerializeAsAny[ObjectiveSettings], Chosen(OBJECTIVES, "cpo_s")]

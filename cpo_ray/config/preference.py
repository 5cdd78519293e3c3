"""Stage 2: the objective and its training."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, model_validator

from cpo_ray.config.model import Lora
from cpo_ray.config.objective import ChosenObjective, ObjectiveSettings
from cpo_ray.config.optimization import Optimization
from cpo_ray.config.registry import OBJECTIVES
from cpo_ray.config.section import Free, Section


def _as_given(settings: ObjectiveSettings) -> Any:
    """Write a baseline as it was given, without what it takes from the main objective."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    return settings.name if set(given) == {"name"} else given


Baseline = Annotated[ChosenObjective, PlainSerializer(_as_given)]


class Preference(Section):
    """Stage 2: the objective (paper, Eq. 10 to 14) and how it is trained."""

    objective: ChosenObjective = Field(default="cpo_s", validate_default=True)
    """The loss that the model learns by. On the command line `preference.objective=cpo` takes cpo with its defaults, and
    `preference.objective.name=cpo` changes the name alone, so that β and ω stay as in the file."""
    seed: int | None = Field(default=None, ge=0)
    """Decides the order of training and the first weights; by default run.seed. Targets do not depend on it, so trainings with
    different seeds share them."""
    lora: Lora = Lora()
    optimization: Optimization
    baselines: Free[tuple[Baseline, ...]] = ()
    """Objectives trained on the same data for comparison. A resumed run may add some. A baseline takes missing settings, such as
    β and ω, from the main objective if that one has them, and its own defaults otherwise."""

    @property
    def trainings(self) -> dict[str, ObjectiveSettings]:
        """The trainings of stage 2 by the objectives' names: the main one first, then the baselines, each
        with complete settings.
        """
        found = {OBJECTIVES.load(self.objective.name).name: self.objective}
        for baseline in self.baselines:
            settings = baseline.completed(self.objective)
            name = OBJECTIVES.load(settings.name).name
            if found.setdefault(name, settings) != settings:
                raise ValueError(
                    f"two different trainings would be called {name!r}, which also is the name of their folder; "
                    "leave one of them out, or give it a run of its own"
                )
        return found

    @model_validator(mode="after")
    def _trainings_have_names_of_their_own(self) -> Preference:
        assert self.trainings
        return self

"""Stage 2: what the model learns, and how."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, model_validator

from cpo_ray.config.model import Lora
from cpo_ray.config.objective import ChosenObjective, ObjectiveSettings
from cpo_ray.config.optimization import Optimization
from cpo_ray.config.registry import OBJECTIVES
from cpo_ray.config.section import Free, Section


def _as_given(settings: ObjectiveSettings) -> Any:
    """A baseline without what it takes from the main objective: its name alone, where nothing else was given."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    return settings.name if set(given) == {"name"} else given


Baseline = Annotated[ChosenObjective, PlainSerializer(_as_given)]


class Preference(Section):
    """Stage 2: the objective (paper, Eq. 10 to 14) and how it is trained."""

    objective: ChosenObjective = Field(default="cpo_s", validate_default=True)
    """On the command line `preference.objective=cpo` replaces the whole section by cpo's defaults, and
    `preference.objective.name=cpo` the name alone, so that β and ω stay as the file has them."""
    seed: int | None = Field(default=None, ge=0)
    """Decides the order of training and the first weights; without it run.seed does. Targets do not depend on it, so trainings
    with different seeds read the same ones."""
    lora: Lora = Lora()
    optimization: Optimization
    baselines: Free[tuple[Baseline, ...]] = ()
    """Objectives that are trained on the same data for comparison; a resumed run may add some. A setting that a baseline is not
    given has the main objective's value where that one has it too, such as β and ω, and its own default otherwise."""

    @property
    def trainings(self) -> dict[str, ObjectiveSettings]:
        """What stage 2 trains, by the names of the objectives: the main one first, then the baselines, each complete."""
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

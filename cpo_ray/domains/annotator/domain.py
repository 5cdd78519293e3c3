"""The annotator behind the door that every domain comes through: what labelled the data labels what models draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict

from cpo_ray.config import Section, load_as
from cpo_ray.config.annotation import AgentSettings, AnnotationSettings
from cpo_ray.config.domain import DomainSettings
from cpo_ray.core.prompts import Labels
from cpo_ray.evaluation.domain import Domain, Picture
from cpo_ray.hierarchy import Hierarchy

if TYPE_CHECKING:
    from cpo_ray.domains.annotator.crew import Crew


class AnnotationFile(Section):
    """The file of `jobs/annotate.py`, of which one section is read here."""

    model_config = ConfigDict(extra="ignore")

    annotation: AnnotationSettings


def _of_file(given: Any) -> Any:
    """Return the agent that a file of `jobs/annotate.py` describes; anything but a file's name is a section of its own."""
    if not isinstance(given, str):
        return given
    found = load_as(AnnotationFile, given).annotation
    return AgentSettings(**{name: getattr(found, name) for name in AgentSettings.model_fields})


class AnnotatorSettings(DomainSettings):
    """Who reads labels from generated pictures."""

    annotation: Annotated[AgentSettings, BeforeValidator(_of_file)]
    """The agent that labelled the data: the file of `jobs/annotate.py` that describes it, or the same settings as a section."""

    def on_other_machines(self) -> AnnotatorSettings:
        told = self.annotation
        update = {"answers": told.answers.absolute(), "back_end": told.back_end.on_other_machines()}
        return self.model_copy(update={"annotation": told.model_copy(update=update)})


class AnnotatorDomain(Domain):
    """Pictures of any kind. The agent that labelled the data says what attributes they have, and what they lack of their prompts.

    Answers are kept by the picture's pixels, the question and the agent, so that none is asked for twice. Nothing is opened
    before the first picture.
    """

    settings = AnnotatorSettings
    scorers = ("negatives", f"{__name__.rpartition('.')[0]}.scorers:ShowsPrompt")

    def __init__(self, settings: AnnotatorSettings, tree: Hierarchy) -> None:
        super().__init__(settings, tree)
        self._told = settings.annotation

    def annotate(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[Labels | None]:
        """Return what the agent finds. Raises AnnotationError if it answers nothing."""
        found = self._crew.annotate(pictures, prompts)
        return [
            None if one.problem else Labels(prompt, tuple(one.positive_ids), tuple(one.negative_ids))
            for one, prompt in zip(found, prompts, strict=True)
        ]

    def shows(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) 1 for a picture that shows everything that its prompt names, 0 for another, NaN where the agent does not say.

        Raises AnnotationError as `annotate` does.
        """
        found = self._crew.shows(pictures, prompts)
        return np.array([np.nan if one.problem else float(not one.missing) for one in found])

    def lacks(self) -> str | None:
        return self._told.back_end.lacks()

    def cost(self, prompts: Mapping[str, int]) -> str:
        from cpo_ray.annotation.asking.annotator import Annotator, Effort
        from cpo_ray.annotation.asking.cache import Answers
        from cpo_ray.annotation.report import in_short, spoken

        told, total = self._told, Effort()
        annotator = Annotator(self.tree, None, Answers(told.answers, told.identity), tries=told.tries, write_prompts=False)
        for prompt, pictures in prompts.items():
            total.add(annotator.estimate(prompt, (told.side, told.side)).times(pictures))
        return (
            f"{told.back_end.model} will read {in_short(sum(prompts.values()))} pictures: at most {in_short(total.asked)} "
            f"questions, {spoken(total, told)}"
        )

    @cached_property
    def _crew(self) -> Crew:
        # Whoever only reads a configuration or checks it needs none of what asking takes.
        from cpo_ray.domains.annotator.crew import Crew

        return Crew(self._told, self.tree)

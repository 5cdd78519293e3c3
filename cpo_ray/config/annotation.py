"""The configuration of `jobs/annotate.py`. No torch, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny

from cpo_ray.config.chosen import Chosen
from cpo_ray.config.domain import ChosenDomain
from cpo_ray.config.registry import BACK_ENDS
from cpo_ray.config.section import Free, Section


class BackEndSettings(Section):
    """The settings that all back ends have; one that can be told more has a subclass of its own."""

    kind: str
    """Who answers, by name, or your own as "module:Class"."""
    model: str
    """The back end that answers. It is written down with the labels, and another model is asked anew."""

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that answers depend on, with "back_end" and "model" among them. By default these are all settings."""
        return {"back_end": self.kind, **self.model_dump(mode="json", exclude={"kind"})}

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """The price of so many tokens of questions and answers, in the currency of the prices; 0 without prices."""
        return 0.0

    def lacks(self) -> str | None:
        """Return what keeps it from answering on this machine, in a sentence; None if nothing is known to."""
        return None

    def on_other_machines(self) -> Self:
        """The same settings for processes that work in another folder."""
        return self


#: The type of a setting that is a back end: a section with its kind and what it is told.
ChosenBackEnd = Annotated[SerializeAsAny[BackEndSettings], Chosen(BACK_ENDS, "endpoint", key="kind")]


class PictureSource(Section):
    """The pictures to annotate."""

    path: Path
    """A folder, searched with everything below it, or one file. It may hold pictures, Parquet files and WebDataset tars, alone or
    mixed."""
    image_column: str | None = None
    """Column of Parquet files with the encoded images, as bytes or as a struct with a field `bytes`. By default the one that is
    named like a picture, or the only one of such a type."""
    id_column: str | None = None
    """Column of Parquet files with the ids. By default `id`; without such a column, file and row number are the id."""
    prompt_column: str | None = None
    """Column of Parquet files with the content prompt y. By default `prompt`, `text` or `caption`. It may be missing if the back
    end writes prompts."""


class AgentSettings(Section):
    """Who answers questions about pictures, how it is asked, and where its answers are kept."""

    back_end: ChosenBackEnd
    """Who answers questions about pictures, such as an OpenAI-compatible endpoint or a vision-language model on our actors."""
    answers: Free[Path]
    """Folder of all answers. Runs may share it; a question that has an answer there is not asked again."""
    side: PositiveInt = 1024
    """Longest side in pixels of the picture that the back end sees."""
    format: Literal["jpeg", "png"] = "jpeg"
    """Encoding of that picture."""
    tries: PositiveInt = 3
    """How often a question is asked before its picture is set aside. After a broken or contradictory answer the back end is told
    why."""
    actors: Free[PositiveInt] = 1
    cpus_per_actor: Free[PositiveFloat] = 0.5
    gpus_per_actor: Free[float] = Field(default=0.0, ge=0)
    stop_after: Free[PositiveInt] = 20
    """The run stops after this many pictures in a row without a single answer, since then the back end is at fault."""
    questions_per_second: Free[PositiveFloat] = 2.0
    """How many questions are answered, for expected times alone. The progress of jobs/annotate.py shows yours."""

    @property
    def identity(self) -> dict[str, Any]:
        """All beside the question and the picture that an answer depends on: answers are kept by it."""
        return {**self.back_end.identity, "side": self.side, "format": self.format}


class AnnotationSettings(AgentSettings):
    """How pictures are annotated, and where the results go."""

    hierarchy: Path
    """YAML file of the attribute tree. The back end is asked about one root at a time."""
    output: Path
    """Folder of the annotated shards. Every run replaces it as a whole when it ends."""
    write_prompts: bool = False
    """Ask for the content prompt y of a picture that has none. Otherwise such a picture is set aside."""


class AnnotationConfig(Section):
    """Everything that one annotation needs, complete in one file."""

    domain: ChosenDomain = Field(default="none", validate_default=True)
    pictures: PictureSource
    annotation: AnnotationSettings

"""The section that says where pictures come from, and who reads labels from them."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, SerializeAsAny, model_validator

from cpo_ray.config.chosen import Chosen
from cpo_ray.config.registry import DOMAINS
from cpo_ray.config.section import Section


class DomainSettings(Section):
    """The settings that all domains have; one that can be told more has a subclass of its own."""

    use: str
    """A domain that can read labels from pictures and score them, by name, or your own as "module:Class". With "none" pictures
    are shown and not measured."""
    pictures: int = Field(default=0, ge=0)
    """With a positive number the domain draws that many pictures of its own where there are none: annotated ones into
    data.folder for a run, and plain ones into pictures.path for annotation."""

    def on_other_machines(self) -> Self:
        """The same settings for processes that work in another folder."""
        return self

    @model_validator(mode="after")
    def _pictures_of_its_own(self) -> DomainSettings:
        if self.pictures and not getattr(DOMAINS.load(self.use), "own_pictures", False):
            raise ValueError(
                f"pictures is {self.pictures}, yet the domain {self.use!r} draws none; set it to 0 and bring your own pictures"
            )
        return self


#: The type of a setting that is a domain: a name alone, or a section with the name and what the domain is told.
ChosenDomain = Annotated[SerializeAsAny[DomainSettings], Chosen(DOMAINS, "none", key="use")]

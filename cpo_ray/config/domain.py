"""Where pictures come from, and who reads labels from them."""

from __future__ import annotations

from pydantic import Field

from cpo_ray.config.section import Section


class DomainSettings(Section):
    use: str = "none"
    """A domain that can read labels from pictures and score them, by name, or your own as "module:Class". With "none" pictures
    are shown and not measured."""
    pictures: int = Field(default=0, ge=0)
    """With a positive number the domain draws that many annotated pictures of its own into data.folder when it is empty."""

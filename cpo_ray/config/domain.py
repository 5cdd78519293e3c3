"""The domain: where pictures come from and how labels are read from them."""

from __future__ import annotations

from pydantic import Field

from cpo_ray.config.section import Section


class DomainSettings(Section):
    use: str = "none"
    """A domain that reads labels from pictures and scores them, by name, or your own as "module:Class". With "none" pictures are
    shown, and nothing reads labels from them."""
    pictures: int = Field(default=0, ge=0)
    """If positive, the domain draws this many annotated pictures of its own into an empty data.folder."""

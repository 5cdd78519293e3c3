"""The configuration of `jobs/review.py`. No torch, no Ray."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from pydantic import Field, field_validator

from cpo_ray.config.section import Section


class ReviewSettings(Section):
    """The section that says what is reviewed, and where the judgements go."""

    annotations: Path
    """Folder of annotated shards. It is only read."""
    hierarchy: Path
    """YAML file of the attribute tree that the shards were annotated with."""
    judgements: Path
    """Folder for a file of judgements per reviewer, and for the report."""
    seed: int = 0
    """Seed of the choice that --sample makes. It is the same for all reviewers, so that they judge the same pictures."""
    host: str = "127.0.0.1"
    """Address of the page. By default only this machine can reach it; name another of its addresses to open it to others."""
    port: int = Field(default=8770, ge=0, le=65535)
    """Port of the page; 0 takes a free one."""

    @field_validator("host")
    @classmethod
    def _one_address(cls, host: str) -> str:
        if not host or (_is_address(host) and ip_address(host).is_unspecified):
            # Requests are compared with it, so that no other site can speak to the page under a name of its own.
            raise ValueError("host must be one address or name by which the reviewers reach this machine, such as 127.0.0.1")
        return host


class ReviewConfig(Section):
    """Everything that one review needs, complete in one file."""

    review: ReviewSettings


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches that host."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True

"""What has to be known of a sweep to check and to plan it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cpo_ray.config import Config


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep: trainings of stage 2 on targets that exist.

    `checkpointed` of them have checkpoints at the same time. `drawn` pictures are drawn to judge all of them, and the base.
    """

    count: int
    at_once: int
    checkpointed: int
    drawn: int
    tried: Mapping[str, Config]
    """Trials by their labels: all of them where they are known ahead, else one at each end of every axis."""
    largest: Mapping[str, Config]
    """Trials whose numbers are all at their largest. The one that takes most memory is planned for."""

"""The numbers by which a sweep multiplies a run's needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep: trainings of stage 2 on targets that exist.

    `checkpointed` of them have checkpoints at the same time. `drawn` pictures are drawn to judge all of them, and the base.
    """

    count: int
    at_once: int
    checkpointed: int
    drawn: int

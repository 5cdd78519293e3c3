"""Compute how many trials fit into a cluster at once; a pure function, so that an impossible plan never starts.

A trial holds a sliver of a CPU for its driver and, from beginning to end, its training workers. The actors that draw and measure
for all trials are placed first. A waiting trial holds nothing that a running one needs, since Ray reserves the workers of a trial
together or not at all. So if one trial fits, none waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cpo_ray.config import Config

#: It waits for its workers and for pictures, and takes no more than that.
DRIVER_CPUS = 0.05


@dataclass(frozen=True)
class Room:
    """The CPUs and GPUs of one machine, or of one process."""

    cpus: float
    gpus: float = 0.0

    def holds(self, other: Room) -> bool:
        return other.cpus <= self.cpus + 1e-6 and other.gpus <= self.gpus + 1e-6

    def less(self, other: Room) -> Room:
        return Room(self.cpus - other.cpus, self.gpus - other.gpus)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")


@dataclass(frozen=True)
class Demand:
    """The processes of one trial, and those that all trials share."""

    trial: tuple[Room, ...]
    shared: tuple[Room, ...]


def demand(config: Config) -> Demand:
    """Return what the trials of a configuration need."""
    training, evaluation = config.preference.optimization, config.evaluation
    workers = (Room(training.cpus_per_worker, training.gpus_per_worker),) * training.workers
    return Demand(
        (Room(DRIVER_CPUS), *workers), (Room(evaluation.cpus_per_actor, evaluation.gpus_per_actor),) * evaluation.actors
    )


def trials_at_once(machines: Sequence[Room], wanted: Demand, limit: int) -> int:
    """Return how many trials fit beside what they share, at most `limit`; 0 if not even one fits."""
    left = _placed(list(machines), wanted.shared)
    count = 0
    while left is not None and count < limit and (left := _placed(left, wanted.trial)) is not None:
        count += 1
    return count


def refusal(machines: Sequence[Room], wanted: Demand) -> str | None:
    """Return why not even one trial fits and what is missing; None if one fits."""
    if trials_at_once(machines, wanted, 1):
        return None
    every = (*wanted.trial, *wanted.shared)
    needs, has = _sum(every), _sum(machines)
    largest = max(every, key=lambda room: (room.gpus, room.cpus))
    text = (
        f"a sweep needs {needs}: {_sum(wanted.trial)} for one trial and its driver, {_sum(wanted.shared)} for the actors that "
        f"draw and measure; there are {has}"
    )
    if has.holds(needs):
        return (
            f"{text}, but not where they are needed: a process that takes {largest} must fit on one of {len(machines)} machines; "
            "lower what each process takes, or add a larger machine"
        )
    missing = Room(max(needs.cpus - has.cpus, 0.0), max(needs.gpus - has.gpus, 0.0))
    return (
        f"{text}, so {missing} are missing; lower preference.optimization.workers, evaluation.actors or what each takes, "
        "or add machines"
    )


def _placed(machines: list[Room], processes: Sequence[Room]) -> list[Room] | None:
    """Place each process, the largest first, on the first machine that holds it, and return what is left; None if one does not
    fit.
    """
    left = list(machines)
    for process in sorted(processes, key=lambda room: (room.gpus, room.cpus), reverse=True):
        place = next((number for number, machine in enumerate(left) if machine.holds(process)), None)
        if place is None:
            return None
        left[place] = left[place].less(process)
    return left


def _sum(rooms: Sequence[Room]) -> Room:
    return Room(round(sum(room.cpus for room in rooms), 6), round(sum(room.gpus for room in rooms), 6))

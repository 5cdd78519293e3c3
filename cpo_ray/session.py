"""The driver's side of Ray: connecting, and telling how far things are."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from cpo_ray.checks import unsafe_flags
from cpo_ray.config import ConfigError


def connect() -> None:
    """Join the cluster that RAY_ADDRESS (or `ray job submit`) names; without one, start a Ray of this machine's own.

    Raises ConfigError when a Ray flag is set that lets data execute code.
    """
    if flags := unsafe_flags(os.environ):
        raise ConfigError(f"{', '.join(flags)} lets Ray Data run code that it reads from files; unset it")
    # Ray's own account of each execution says nothing that our progress lines do not.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        address = None if os.environ.get("RAY_ADDRESS") else "local"
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def release_reserved(seconds: float = 10.0) -> int:
    """Give back what trainings of this job have reserved that were killed; returns how many there were.

    To be called when none is running. Ray Train has a process that does so, and tells it only once the workers run: a training
    that is killed while it starts would hold its CPUs and GPUs as long as the job lasts, and the next one would wait for them.
    """
    ended, removed, quiet = time.monotonic() + seconds, 0, 0
    while quiet < 2 and time.monotonic() < ended:  # what is being killed may just have asked for more
        left = [
            identity
            for identity, group in placement_group_table().items()
            # The end of an identity is its job's.
            if group["state"] != "REMOVED" and identity.endswith(ray.get_runtime_context().get_job_id())
        ]
        for identity in left:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(identity)))
        removed, quiet = removed + len(left), 0 if left else quiet + 1
        time.sleep(0.5)
    return removed


class ProgressLine:
    """How far the things are that go on at the same time: "cpo_s: targets 45 of 75, steps 60 of 150, about 33 s left".

    One line that is rewritten in a terminal; elsewhere a plain line at every tenth of any of them.
    """

    def __init__(self, label: str) -> None:
        self.note = ""
        """Said after the counters, such as a rate or a cost."""
        self._label = label
        self._counters: dict[str, _Counter] = {}
        self._lock = threading.Lock()

    def counter(self, name: str) -> Callable[[int, int], None]:
        """A function to tell (done, total) of one of them, from any thread."""

        def tell(done: int, total: int) -> None:
            with self._lock:
                counter = self._counters.setdefault(name, _Counter(done, total))
                tenth, counter.done = counter.tenth, done
                self._print(counter.tenth != tenth or done == total)

        return tell

    def _print(self, notable: bool) -> None:
        parts = [f"{name} {counter.done} of {counter.total}" for name, counter in self._counters.items()]
        ended = all(counter.done == counter.total for counter in self._counters.values())
        if self.note:
            parts.append(self.note)
        running = [counter for counter in self._counters.values() if counter.first < counter.done < counter.total]
        if running:
            parts.append(f"about {max(counter.seconds_left for counter in running):.0f} s left")
        line = f"{self._label}: {', '.join(parts)}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="\n" if ended else "", file=sys.stderr, flush=True)
        elif notable:
            print(line, file=sys.stderr, flush=True)


class _Counter:
    def __init__(self, done: int, total: int) -> None:
        self.started, self.first = time.monotonic(), done
        self.done, self.total = done, total

    @property
    def tenth(self) -> int:
        return self.done * 10 // self.total

    @property
    def seconds_left(self) -> float:
        """At the pace since the first report; what was there before it took no time."""
        return (time.monotonic() - self.started) / (self.done - self.first) * (self.total - self.done)

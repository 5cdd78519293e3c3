"""How far something is, for whoever waits: a line with what is done and how long the rest will take."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable

#: The pace is that of so many last seconds: starting up, and waiting for what others compute, soon no longer count.
PACE_SECONDS = 30.0


def in_words(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


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
                tenth = counter.tenth
                counter.reach(done)
                self._print(counter.tenth != tenth or done == total)

        return tell

    def _print(self, notable: bool) -> None:
        parts = [f"{name} {counter.done} of {counter.total}" for name, counter in self._counters.items()]
        ended = all(counter.done == counter.total for counter in self._counters.values())
        if self.note:
            parts.append(self.note)
        if left := [counter.seconds_left for counter in self._counters.values() if counter.seconds_left is not None]:
            parts.append(f"about {in_words(max(left))} left")
        line = f"{self._label}: {', '.join(parts)}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="\n" if ended else "", file=sys.stderr, flush=True)
        elif notable:
            print(line, file=sys.stderr, flush=True)


class _Counter:
    def __init__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self._reached = deque([(time.monotonic(), done)])  # when how many were done, each time that there were more

    def reach(self, done: int) -> None:
        now = time.monotonic()
        if done > self.done:
            self._reached.append((now, done))
        self.done = done
        while len(self._reached) > 2 and self._reached[1][0] < now - PACE_SECONDS:
            self._reached.popleft()

    @property
    def tenth(self) -> int:
        return self.done * 10 // self.total

    @property
    def seconds_left(self) -> float | None:
        """At the latest pace; None while there is none, and at the end. What was there at the first report took no time."""
        since, before = self._reached[0]
        if not before < self.done < self.total:
            return None
        return (time.monotonic() - since) / (self.done - before) * (self.total - self.done)

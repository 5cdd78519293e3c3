"""How far something is, for whoever waits: a line with what is done and how long the rest will take."""

from __future__ import annotations

import math
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol


class Tell(Protocol):
    """Takes how many are done of how many.

    `at` is when the last of them was done, in seconds of any clock that stands still while they wait for another counter; it is
    now where left out.
    """

    def __call__(self, done: int, total: int, at: float | None = None) -> None: ...


def in_words(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


class ProgressLine:
    """How far several things are that go on at the same time: "cpo_s: targets 45 of 75, steps 60 of 150, about 33 s left".

    A terminal has one line that is rewritten; elsewhere there is a plain line at every tenth of any of them.
    The time left is that of the counter that has most left. It is not told while an unfinished counter has no pace yet.
    """

    def __init__(self, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.note = ""
        """Said after the counters, such as a rate or a cost."""
        self._label, self._clock = label, clock
        self._counters: dict[str, _Counter] = {}
        self._lock = threading.Lock()

    def counter(self, name: str, at_once: int = 1) -> Tell:
        """A function to tell how far one of them is, from any thread; `at_once` are in work together and end in bursts."""

        def tell(done: int, total: int, at: float | None = None) -> None:
            with self._lock:
                counter = self._counters.setdefault(name, _Counter(done, total, at_once))
                tenth = counter.tenth
                counter.reach(done, self._clock() if at is None else at)
                self._print(counter.tenth != tenth or done == total)

        return tell

    def _print(self, notable: bool) -> None:
        parts = [f"{name} {counter.done} of {counter.total}" for name, counter in self._counters.items()]
        unfinished = [counter.seconds_left for counter in self._counters.values() if counter.done < counter.total]
        left = [seconds for seconds in unfinished if seconds is not None]
        if self.note:
            parts.append(self.note)
        if unfinished and len(left) == len(unfinished):
            parts.append(f"about {in_words(max(left))} left")
        line = f"{self._label}: {', '.join(parts)}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="" if unfinished else "\n", file=sys.stderr, flush=True)
        elif notable:
            print(line, file=sys.stderr, flush=True)


class _Counter:
    """How many are done, and when each number was reached."""

    def __init__(self, done: int, total: int, at_once: int) -> None:
        self.done, self.total, self._at_once = done, total, at_once
        # Without the first report: what was there before took no time, and the first one after it took the starting up, too.
        self._numbers: list[int] = []
        self._times: list[float] = []

    def reach(self, done: int, at: float) -> None:
        if done < self.done:  # a training that was started again from its checkpoint
            self._numbers.clear()
            self._times.clear()
        elif done > self.done:
            self._numbers.append(done)
            self._times.append(at)
        self.done = done

    @property
    def tenth(self) -> int:
        return self.done * 10 // self.total

    @property
    def seconds_left(self) -> float | None:
        """At the present pace; None while there is none.

        The pace is the geometric mean of two: that of all since the first one, which a pause does not mislead, and that of the
        latest third, which follows a change. Both count whole bursts, since within a burst everything seems fast.
        """
        if not self._numbers:
            return None
        first = self._numbers[0]
        bursts = (self.done - first) // self._at_once
        if bursts == 0:
            return None
        last, third = (first + number * self._at_once for number in (bursts, bursts - math.ceil(bursts / 3)))
        of_all, of_third = ((self._time(last) - self._time(number)) / (last - number) for number in (first, third))
        left = self.total - self.done
        # The last ones are all in work already, and it is the slowest of them that counts.
        bursts_left = left / (left + 1) if left < self._at_once else left / self._at_once
        return math.sqrt(of_all * of_third) * self._at_once * bursts_left

    def _time(self, number: int) -> float:
        """Return when so many were done, in equal parts between two reports."""
        place = bisect_left(self._numbers, number)
        if self._numbers[place] == number:
            return self._times[place]
        (n, at), (next_n, next_at) = zip(self._numbers[place - 1 : place + 1], self._times[place - 1 : place + 1], strict=True)
        return at + (next_at - at) * (number - n) / (next_n - n)

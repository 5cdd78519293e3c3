"""The progress line on a clock of the test's own: how it reads, and whether the time left comes true."""

from __future__ import annotations

import heapq
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cpo_ray.core.progress import ProgressLine, in_words


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


# ---- how it reads


def test_a_line_at_every_tenth_tells_all_counters_and_the_slower_ones_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    line = ProgressLine("cpo_s", clock)
    targets, steps = line.counter("targets"), line.counter("steps")
    targets(40, 100)  # these were there before
    steps(0, 30)
    clock.now += 90  # starting up
    targets(41, 100)
    clock.now += 9
    targets(50, 100)  # a second each, and the steps have no pace yet
    steps(1, 30)
    clock.now += 8
    steps(3, 30)  # four seconds each
    clock.now += 42
    targets(100, 100)
    clock.now += 50
    line.note = "2.0 GB"
    steps(30, 30)
    assert capsys.readouterr().err.splitlines() == [
        "cpo_s: targets 50 of 100, steps 0 of 30",
        "cpo_s: targets 50 of 100, steps 3 of 30, about 2 min left",
        "cpo_s: targets 100 of 100, steps 3 of 30, about 2 min left",
        "cpo_s: targets 100 of 100, steps 30 of 30, 2.0 GB",
    ]


def test_durations_read_well() -> None:
    assert [in_words(seconds) for seconds in (12, 600, 36_000)] == ["12 s", "10 min", "10.0 h"]


def test_a_terminal_has_one_line_that_is_rewritten(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tell = ProgressLine("evaluation").counter("pictures")
    for done in (1, 2, 3):
        tell(done, 3)
    text = capsys.readouterr().err
    assert text.count("\r\033[K") == 3 and text.count("\n") == 1 and text.endswith("evaluation: pictures 3 of 3\n")


# ---- whether the time left comes true

#: When a counter is told something: the time, its name, how many are done of how many, and the time on its own clock.
Event = tuple[float, str, int, int, float | None]


def counted(times: list[float], name: str = "steps", before: int = 0) -> list[Event]:
    """A counter that is told at the beginning and whenever one is done."""
    total = before + len(times)
    return [(0.0, name, before, total, None), *((at, name, n, total, None) for n, at in enumerate(times, before + 1))]


def constant(count: int, start: float, each: float) -> list[float]:
    return [start + number * each for number in range(count)]


def pool(count: int, actors: int, start: float, each: float, jitter: float) -> list[float]:
    """When the work of a pool ends, whose actors take `each` seconds apiece, more or less."""
    chance = random.Random(f"{count} {actors} {jitter}")
    free, ends = [start] * actors, []
    for _ in range(count):
        ends.append(heapq.heappop(free) + each * chance.uniform(1 - jitter, 1 + jitter))
        heapq.heappush(free, ends[-1])
    return sorted(ends)


@dataclass
class Training:
    """Steps that wait for targets, and are slower by `shared` while these are computed; looked at every two seconds."""

    count: int
    each: float
    targets: list[float]
    per_target: float
    start: float = 12.0
    shared: float = 1.0

    def events(self) -> Iterator[Event]:
        now, waited, look, told = self.start, 0.0, 2.0, -1
        for step in range(self.count):
            needed = self.targets[min(len(self.targets), int(step / self.per_target) + 1) - 1]
            ready = max(now, needed)
            then = ready + self.each * (self.shared if ready < self.targets[-1] else 1.0)
            while look < then:
                if step != told:
                    yield look, "steps", step, self.count, now - waited
                told, look = step, look + 2.0
            waited, now = waited + ready - now, then
        yield now, "steps", self.count, self.count, None


def both(targets: list[float], training: Training) -> list[Event]:
    return [*counted(targets, "targets"), *training.events()]


BURSTS, FAST, LATE = pool(75, 2, 8, 2, 0.1), pool(75, 2, 8, 0.5, 0.1), pool(75, 2, 300, 2, 0.1)
#: At how many a time the targets, or the only counter, come; and what is told.
TRACES: dict[str, tuple[int, list[Event]]] = {
    "constant": (1, counted(constant(100, 1, 1))),
    "most of it was there before": (1, counted(constant(100, 20, 1), before=100)),
    "five minutes until the first one": (1, counted(constant(200, 300, 1))),
    "two actors": (2, counted(pool(75, 2, 20, 5, 0.0))),
    "four actors, more or less alike": (4, counted(pool(200, 4, 20, 5, 0.1))),
    "eight actors, each as it likes": (8, counted(pool(400, 8, 120, 20, 0.5))),
    "half a minute's pause at every fiftieth": (1, counted([5.0 + n + 30 * (n // 50) for n in range(200)])),
    "slow, then twice as fast": (1, counted([*constant(100, 5, 1.8), *constant(100, 185, 1)])),
    "targets are slower": (2, both(BURSTS, Training(150, 0.3, BURSTS, 2))),
    "training is slower": (2, both(BURSTS, Training(150, 3, BURSTS, 2))),
    "both take as long": (2, both(BURSTS, Training(150, 0.5, BURSTS, 2))),
    "targets come late": (2, both(LATE, Training(150, 2, LATE, 2))),
    "steps wait in the first epoch of four only": (2, both(BURSTS, Training(600, 0.25, BURSTS, 2))),
    "targets end early": (2, both(FAST, Training(600, 1, FAST, 2))),
    "steps share the processors with the targets": (2, both(BURSTS, Training(150, 0.6, BURSTS, 2, shared=1.8))),
}


@pytest.mark.parametrize("trace", TRACES)
def test_from_a_tenth_on_the_time_left_is_right_within_a_factor_of_two(
    trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, events = TRACES[trace]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # every line, not only those at tenths
    clock, told = Clock(), 0
    line = ProgressLine("x", clock)
    names = {name for _, name, *_ in events}
    tells = {name: line.counter(name, at_once if len(names) == 1 or name == "targets" else 1) for name in names}
    end = max(at for at, *_ in events)
    shares: dict[str, float] = {}
    for at, name, done, total, own in sorted(events):
        clock.now, shares[name] = at, done / total
        tells[name](done, total, own)
        said = re.search(r"about ([\d.]+) (s|min|h) left", capsys.readouterr().err)
        # Below the length of a burst, and of a look at the steps, there is nothing to be right about.
        if said and min(shares.values()) >= 0.1 and end - at > 10:
            seconds = float(said[1]) * {"s": 1, "min": 60, "h": 3600}[said[2]]
            assert 0.5 * 0.97 <= seconds / (end - at) <= 2 * 1.03, f"{said[0]}, in truth {end - at:.0f} s"
            told += 1
    assert told >= 40


def test_few_long_steps_are_not_told_by_their_start(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage of three steps: nothing is said before there is a pace, and then what a step takes without starting up."""
    clock = Clock()
    tell = ProgressLine("expert", clock).counter("steps")
    for at, done in ((0, 0), (60, 1), (62, 2), (64, 3)):
        clock.now = at
        tell(done, 3)
    said = capsys.readouterr().err.splitlines()
    assert said == ["expert: steps 1 of 3", "expert: steps 2 of 3, about 2 s left", "expert: steps 3 of 3"]


def test_a_training_that_starts_again_has_a_new_pace(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    tell = ProgressLine("expert", clock).counter("steps")
    for done in range(50):
        clock.now += 1
        tell(done, 100)
    clock.now += 500  # until another worker is there
    for done in range(40, 60):
        clock.now += 3
        tell(done, 100)
    assert "steps 50 of 100, about 2 min left" in capsys.readouterr().err

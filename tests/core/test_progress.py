"""The progress line, as it reads where standard error is no terminal and where it is one."""

from __future__ import annotations

import pytest

from cpo_ray.core import progress
from cpo_ray.core.progress import ProgressLine, in_words


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_at_every_tenth_tells_all_counters_and_the_slower_ones_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine("cpo_s")
    targets, steps = line.counter("targets"), line.counter("steps")
    targets(40, 100)  # what was there before took no time
    clock[0] += 10
    targets(50, 100)
    steps(0, 30)
    clock[0] += 12
    targets(51, 100)
    steps(3, 30)
    targets(100, 100)
    steps(30, 30)
    assert capsys.readouterr().err.splitlines() == [
        "cpo_s: targets 50 of 100, about 50 s left",
        "cpo_s: targets 51 of 100, steps 3 of 30, about 2 min left",
        "cpo_s: targets 100 of 100, steps 3 of 30, about 2 min left",
        "cpo_s: targets 100 of 100, steps 30 of 30",
    ]


def test_the_rest_is_told_by_the_latest_pace(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    tell = ProgressLine("expert").counter("steps")
    tell(0, 200)
    clock[0] += 300  # until the first targets are there
    for step in range(1, 121):
        clock[0] += 1
        tell(step, 200)
    assert capsys.readouterr().err.splitlines()[-1] == "expert: steps 120 of 200, about 80 s left"
    clock[0] += 600  # slow steps have a pace, too
    tell(150, 200)
    assert "steps 150 of 200, about 17 min left" in capsys.readouterr().err


def test_durations_read_well() -> None:
    assert [in_words(seconds) for seconds in (12, 600, 36_000)] == ["12 s", "10 min", "10.0 h"]


def test_a_terminal_has_one_line_that_is_rewritten(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    tell = ProgressLine("evaluation").counter("pictures")
    for done in (1, 2, 3):
        tell(done, 3)
    text = capsys.readouterr().err
    assert text.count("\r\033[K") == 3 and text.count("\n") == 1 and text.endswith("evaluation: pictures 3 of 3\n")

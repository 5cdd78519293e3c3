"""Who works on a run, and what is left and said when it is cut short. Without Ray."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cpo_ray import run as run_module
from cpo_ray.config import ConfigError, load
from cpo_ray.core.files import json_lines, write_json
from cpo_ray.core.locks import LockError, locked
from cpo_ray.requirements import RequirementMissed
from cpo_ray.run import InterruptedRun, Run, opened

TOY = Path(__file__).parents[1] / "jobs" / "configs" / "toy.toml"
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


class Tracker(SimpleNamespace):
    def abandon(self, status: str) -> None:
        self.statuses.append(status)


@pytest.fixture
def statuses() -> list[str]:
    return []


@pytest.fixture
def begin(tmp_path: Path, statuses: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A way to open a run that needs neither Ray nor data."""
    config = load(TOY, ["run.name=toy", f"run.output={tmp_path}"])
    nothing: Any = None

    def open_run(*_: object) -> Run:
        tracker: Any = Tracker(statuses=statuses)
        return Run(config, nothing, nothing, config.folder, tracker, resume=True)

    monkeypatch.setattr(run_module, "open_run", open_run)
    return lambda: opened(config, resume=True)


def test_a_second_process_on_a_run_is_refused_and_told_who_has_it(begin: Callable[[], Any], tmp_path: Path) -> None:
    with begin():
        told = rf"{tmp_path}/toy is worked on by process \d+ on .* since .* UTC; wait for it, or stop it"
        with pytest.raises(ConfigError, match=told), begin():
            pass
    with begin():
        pass  # the first has let go


def test_a_dead_process_lets_go_of_its_run(begin: Callable[[], Any], tmp_path: Path) -> None:
    with begin():
        pass
    holder = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(tmp_path / ".locks" / "toy")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="is worked on by"), begin():
        pass
    holder.kill()
    holder.communicate()
    with begin():
        pass


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.raises(LockError, match=rf"{tmp_path}/a cannot be locked \(No locks available\); use a disk"),
        locked(tmp_path / "a"),
    ):
        pass


@pytest.mark.parametrize(
    ("stop", "how", "code"),
    [(KeyboardInterrupt(), "Ctrl-C", 130), (SystemExit(0), "Ctrl-C", 130), (SystemExit(15), "SIGTERM", 143)],
)
def test_a_stopped_run_is_killed_in_the_store_and_says_where_it_was(
    stop: BaseException, how: str, code: int, begin: Callable[[], Any], statuses: list[str], tmp_path: Path
) -> None:
    expert = tmp_path / "toy" / "expert"
    write_json(expert / "training.json", {})
    (expert / "metrics.jsonl").write_bytes(json_lines({"step": step} for step in range(7)))
    checkpoint = expert / "toy-expert" / "step-00000005"
    write_json(checkpoint / "training_state.json", {"step": 5})
    save_file({"a": torch.zeros(1)}, checkpoint / "engine.safetensors")
    with pytest.raises(InterruptedRun) as told, begin():
        raise stop
    sentence = "in the training of expert after 7 steps; pass --resume to go on from the checkpoint of step 5"
    assert (str(told.value), told.value.exit_code) == (f"toy was stopped by {how} {sentence}", code)
    assert statuses == ["KILLED"]


def test_a_failed_run_is_failed_in_the_store_and_a_missed_figure_is_not(
    begin: Callable[[], Any], statuses: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequirementMissed), begin():
        raise RequirementMissed("negatives")
    assert (statuses, capsys.readouterr().out) == ([], "")
    with pytest.raises(ValueError, match="no"), begin():
        raise ValueError("no")
    assert capsys.readouterr().out == "[toy] the run failed before its first training; pass --resume to go on\n"
    for name in ("expert", "cpo_s"):
        write_json(tmp_path / "toy" / name / "training.json", {})
        write_json(tmp_path / "toy" / name / "result.json", json.loads("{}"))
    with pytest.raises(ValueError, match="no"), begin():
        raise ValueError("no")
    assert "failed after the training of cpo_s; pass --resume" in capsys.readouterr().out
    assert statuses == ["FAILED", "FAILED"]

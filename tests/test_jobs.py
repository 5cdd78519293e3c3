"""The command lines as a user types them, in the repository's root: in a process of their own where that is what matters."""

from __future__ import annotations

import inspect
import resource
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpo_ray import command_line
from cpo_ray.config import Config
from cpo_ray.hierarchy import HierarchyError

ROOT = Path(__file__).parents[1]
Job = Callable[..., subprocess.CompletedProcess[str]]
JOBS = sorted(str(path.relative_to(ROOT)) for room in ("jobs", "tune") for path in (ROOT / room).glob("*.py"))


def job(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, name, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture
def job_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Job:
    """`job` in this process, where what is heavy was imported before."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(name, run_name="__main__")
        said = capsys.readouterr()
        return subprocess.CompletedProcess([name, *arguments], int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.mark.parametrize("name", JOBS)
def test_help_takes_less_than_a_second(name: str) -> None:
    # Processor time, which other programs on the machine do not lengthen as they do the clock's.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = job(name, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.returncode == 0 and "--config FILE" in answer.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("name", JOBS)
def test_parsing_imports_nothing_heavy(name: str) -> None:
    code = f"import runpy, sys; runpy.run_path({name!r}); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "ray", "mlflow", "diffusers", "transformers", "deepspeed", "pyarrow"} & set(answer.stdout.split())


@pytest.mark.parametrize("name", JOBS)
def test_what_a_job_calls_is_there_and_takes_its_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(command_line, "run", lambda line, *functions, **_: given.extend((line, *functions)))
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / name), run_name="__main__")
    line, job, *check = given
    options = {action.dest for action in line._actions} - {"help", "config", "overrides", "check"}
    inspect.signature(command_line.function(job)).bind("the configuration", **dict.fromkeys(options))
    for each in check:
        inspect.signature(command_line.function(each)).bind("the configuration")


def test_a_wrong_key_is_answered_with_a_sentence() -> None:
    answer = job("jobs/train_cpo.py", "preference.objective.omega_wim=3")
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.count("\n") == 1 and "did you mean 'omega_win'?" in answer.stderr


def test_options_may_stand_between_overrides() -> None:
    answer = job("jobs/train_sft.py", "run.seed=1", "--resume", "run.seed=-1")
    assert answer.returncode == 2 and "'run.seed' is -1" in answer.stderr


def test_a_missing_file_is_answered_with_a_sentence() -> None:
    answer = job("jobs/evaluate.py", "--config", "jobs/configs/none.toml")
    assert answer.returncode == 2 and answer.stderr.startswith("no config file at jobs/configs/none.toml")


def test_check_says_that_the_embedded_domain_can_start(tmp_path: Path, job_here: Job) -> None:
    """In a process of its own it is in test_cases."""
    few = ["targets.cpus_per_actor=0.2", "preference.optimization.cpus_per_worker=0.2", "evaluation.cpus_per_actor=0.2"]
    answer = job_here("jobs/train_cpo.py", "--check", f"run.output={tmp_path}", f"data.folder={tmp_path / 'data'}", *few)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "will draw 1000 pictures" in answer.stdout and "targets take up to" in answer.stdout
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_check_says_what_is_missing(job_here: Job) -> None:
    answer = job_here("jobs/train_cpo.py", "--check", "domain.pictures=0", "data.folder=nowhere", "targets.min_actors=1000000")
    assert answer.returncode == 1
    lines = answer.stdout.splitlines()
    assert [line for line in lines if line.startswith("missing") and "no folder nowhere" in line]
    assert [line for line in lines if line.startswith("missing") and "stage 2 with its targets takes" in line]


def _failing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    """A job that raises the error; returns its exit status."""

    def job(config: Config) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["job.py"])
    return command_line.run(command_line.parser("A job."), job)


@pytest.mark.parametrize("error", [HierarchyError("tree.yaml:3: wrong"), OSError(28, "No space left", "shard")])
def test_mistakes_of_users_are_sentences(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _failing(error, monkeypatch) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("shapes differ"), KeyError("x"), OSError(13, "denied")])
def test_mistakes_of_ours_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)) as raised:
        _failing(error, monkeypatch)
    assert raised.value is error


def test_the_target_tool_takes_an_action(job_here: Job) -> None:
    answer = job_here("jobs/targets.py")
    assert answer.returncode == 2 and "action" in answer.stderr
    answer = job_here("jobs/targets.py", "list", "targets.folder=nowhere")
    assert answer.returncode == 0 and "0 sets of shards, 0.00 GB in" in answer.stdout


def test_a_sweep_says_what_it_would_run(tmp_path: Path, job_here: Job) -> None:
    few = [f"run.output={tmp_path}", f"data.folder={tmp_path / 'data'}"]
    few += ["targets.cpus_per_actor=0.2", "evaluation.cpus_per_actor=0.05", "preference.optimization.cpus_per_worker=0.2"]
    answer = job_here("tune/search_cpo.py", "--check", *few, "sweep.space={ omega = [1.0, 2.0], beta = [10.0, 100.0] }")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "sweep: 4 trials by search 'grid'" in answer.stdout
    answer = job_here("tune/search_cpo.py", "--config", "jobs/configs/toy.toml", "--check")
    assert answer.returncode == 2 and "has no [sweep] section" in answer.stderr

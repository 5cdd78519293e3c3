"""What a pipeline requires of figures, and how it is told that one misses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpo_ray.config import ConfigError, load
from cpo_ray.core.statistics import Interval
from cpo_ray.evaluation.measure import Scores
from cpo_ray.evaluation.scorers.base import open_scorers
from cpo_ray.requirements import RequirementMissed, read_requirements, require

ROOT = Path(__file__).parents[1]
SCORERS = open_scorers(load(ROOT / "jobs" / "configs" / "toy.toml"))
FOUND = Scores(
    {"negatives": Interval(1.0, 0.9, 1.1), "content": Interval(0.9, 0.8, 1.0), "distance": Interval(9.0, 8.0, 10.0)},
    {"negatives": Interval(-1.0, -1.5, -0.5)},
    {"negatives": 3},
)


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("negatives<=1.1", ""),
        ("negatives <= 1.0", "negatives<=1 is missed: 1, 95 % interval 0.9 to 1.1, 3 pictures unscored"),
        ("negatives<1.1", "negatives<1.1 is missed"),
        ("negatives>=0.9", ""),
        ("content>0.8", "content>0.8 is missed: 0.9, 95 % interval 0.8 to 1"),
        ("negatives.change<0", ""),
        ("negatives.change<-1e0", "negatives.change<-1 is missed: -1, 95 % interval -1.5 to -0.5"),
        ("distance<=10", ""),
        ("content.change>=0", "content.change>=0 has no number"),
    ],
)
def test_the_whole_interval_must_lie_there(text: str, missed: str) -> None:
    required = read_requirements([text], SCORERS)
    if not missed:
        require(required, "cpo_s", {"cpo_s": FOUND})
        return
    with pytest.raises(RequirementMissed) as told:
        require(required, "cpo_s", {"cpo_s": FOUND})
    assert str(told.value).startswith(f"cpo_s: {missed}")


def test_every_figure_that_misses_is_named() -> None:
    required = read_requirements(["negatives<=0.5", "content>=0.8", "distance<1"], SCORERS)
    with pytest.raises(RequirementMissed, match=r"cpo_s: negatives<=0\.5 is missed: .*; distance<1 is missed"):
        require(required, "cpo_s", {"cpo_s": FOUND})
    with pytest.raises(RequirementMissed, match=r"cpo was not trained, so negatives<=0\.5 cannot hold"):
        require(required, "cpo", {"cpo_s": FOUND})
    require([], "cpo", {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("negatives=1", r"--require 'negatives=1' is no requirement; write a scorer's name or NAME\.change, one of <= >= < >,"),
        ("negatives<=few", "is no requirement"),
        ("clip>=0.3", "names 'clip', by which nothing is scored here; choose among negatives, content, distance"),
        ("distance.change<0", "distance is one number of all pictures together and has no paired change"),
    ],
)
def test_what_cannot_be_required_is_told_before_anything_is_drawn(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_requirements([text], SCORERS)


def test_the_command_ends_with_exit_code_3(tmp_path: Path) -> None:
    program = tmp_path / "job.py"
    program.write_text(
        "from cpo_ray.command_line import parser, run\n"
        "def job(config):\n"
        "    from cpo_ray.requirements import RequirementMissed\n"
        "    raise RequirementMissed('cpo_s: negatives<=1 is missed')\n"
        "raise SystemExit(run(parser('A job.'), job))\n"
    )
    answer = subprocess.run([sys.executable, str(program)], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (3, "cpo_s: negatives<=1 is missed\n")
    wrong = subprocess.run(
        [sys.executable, "jobs/evaluate.py", "--require", "clip>=1"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 2 and "--require clip>=1 names 'clip', by which nothing is scored here" in wrong.stderr

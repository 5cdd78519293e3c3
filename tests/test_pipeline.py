"""The whole method, submitted to a cluster as the README says, and that nothing about how it is run changes what comes out."""

from __future__ import annotations

import json
import runpy
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from ray.train import Result
from ray.train.torch import TorchTrainer
from support.main_job import ROOT, TOY, head, settings, submit

from cpo_ray import stages
from cpo_ray.config import load
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.training.artifacts.ledger import read_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Submitted:
    """What `ray job submit` said: of a wrong setting, to somebody without the token, and of the run `whole` in `folder`."""

    wrong: CompletedProcess[str]
    refused: CompletedProcess[str]
    done: CompletedProcess[str]
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "whole"


@pytest.fixture(scope="session")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """Two Rays on a machine disturb each other, so this one has ended before the others' tests begin."""
    folder = tmp_path_factory.mktemp("submitted")
    with head(folder) as environment:
        wrong = submit(environment, "run.sed=1")
        stranger = {key: value for key, value in environment.items() if not key.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "disabled"
        }
        refused = submit(stranger, "run.sed=1")
        done = submit(environment, *settings(folder, "whole"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return Submitted(wrong, refused, done, folder)


def test_job_is_submitted_with_a_token(submitted: Submitted) -> None:
    wrong, refused = submitted.wrong, submitted.refused
    assert wrong.returncode != 0 and "unknown key 'run.sed'; did you mean 'seed'?" in wrong.stdout + wrong.stderr
    # Without the token the door is closed.
    assert refused.returncode != 0 and "run.sed" not in refused.stdout


def test_main_job_from_nothing_to_the_report(submitted: Submitted) -> None:
    said, run = submitted.done.stdout, submitted.run
    assert "#A_neg" in said and "cpo_s" in said and "mlflow ui" in said
    page = (run / "evaluation" / "report.html").read_text()
    assert "data:image/png;base64," in page and "http-equiv" not in page
    first = run / "expert" / "pictures.html"
    assert 0 < said.find(f"beside the attributes that it was asked for: {first}") < said.index("cpo_s: 5 steps")
    assert first.read_text().count("<img") == 2 * 12
    result = json.loads((run / "evaluation" / "result.json").read_text())
    assert set(result["models"]) == {"base", "expert, told what is good", "cpo_s"}
    curve = [json.loads(line) for line in (run / "cpo_s" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [0, 1, 2, 3, 4]
    assert curve[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "a model equal to the reference has a loss of ln 2"
    assert curve[0]["distance_to_reference"] < 1e-9
    assert len(read_ledger(run / "cpo_s")) == 5 * 8
    pictures = sorted((run / "cpo_s" / "samples").iterdir())
    assert [file.name for file in pictures] == [f"step-{step:08d}.png" for step in (2, 4, 5)]
    assert len({file.read_bytes() for file in pictures}) == 3, "the weights move, and what they draw with them"
    assert not any((run / "cpo_s" / "snapshots").iterdir())
    shown = [file.name for file in (submitted.folder / "mlartifacts").rglob("samples*.png")]
    assert len(shown) == 4, "three of stage 2 and one of the expert are in MLflow"

    card = (run / "cpo_s" / "adapter" / "README.md").read_text()
    measured = result["models"]["cpo_s"]
    tree = load_hierarchy(load(TOY).data.hierarchy)
    for line in (
        "license_name: Apache-2.0",
        f"| hierarchy | {tree.name} {tree.version}, {tree.content_hash} |",
        "| omega_win | 1.0 |",
        "| beta | ",
        "| training pictures | ",
        "| data | 90 pictures, ",
        "| last step: loss | ",
        "12 pictures, of the same test prompts and noise",
        f"| cpo_s | {measured['negatives']['mean']:.2f} [",
        f" | {measured['content']['mean']:.3f} | ",
    ):
        assert line in card, line
    kept = [file for file in (submitted.folder / "mlartifacts").rglob("README.md") if "objective | cpo_s" in file.read_text()]
    assert [file.read_text() for file in kept] == [card], "the card in MLflow is the one here"


@pytest.fixture
def job(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """A job by its command line, in this process and its Ray; returns the exit status."""

    def run(script: str, *arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / script), run_name="__main__")
        return ended.value.code

    return run


def test_what_exists_is_neither_overwritten_nor_made_again(
    submitted: Submitted, job: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = settings(submitted.folder, "whole")
    assert job("train_cpo.py", *arguments) == 2
    assert "already holds a run; pass --resume" in capsys.readouterr().err
    assert job("train_cpo.py", "--resume", *arguments, "preference.objective.beta=7.0") == 2
    assert "beta = 7.0" in capsys.readouterr().err

    # The adapter stays as it is, to the byte.
    adapter = submitted.run / "cpo_s" / "adapter" / "pytorch_lora_weights.safetensors"
    before, card = adapter.stat().st_mtime_ns, adapter.with_name("README.md")
    evaluated = card.read_text()
    assert job("evaluate.py", *arguments) == 0
    assert adapter.stat().st_mtime_ns == before
    assert card.read_text() == evaluated


def test_same_adapter_whatever_computes_the_targets(
    submitted: Submitted, job: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actors beside training, or one ahead of it: the same bytes, in the target shards and in the adapter."""
    calls: list[str] = []

    def fit(trainer: TorchTrainer, fit: Callable[[TorchTrainer], Result] = TorchTrainer.fit) -> Result:
        package = str(Path(stages.__file__).parent)
        main = sys._current_frames()[threading.main_thread().ident or 0]  # which waits for the thread of this call
        calls.extend(frame.name for frame in traceback.extract_stack(main) if frame.filename.startswith(package))
        return fit(trainer)

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    for stage in ("check_obedience", "evaluate"):
        monkeypatch.setattr(stages, stage, lambda run: None)
    folder, expert = submitted.folder, submitted.run / "expert" / "adapter"
    ahead = ("targets.overlap=false", "targets.min_actors=1", "targets.max_actors=1", f"expert.adapter={expert}")
    assert job("train_cpo.py", *settings(folder, "ahead", *ahead, "targets.cpus_per_actor=0.3")) == 0
    # Three calls from the command line to Ray Train, then `train_loop`, and three to the loss (see test_own_objective): seven.
    assert calls == ["run", "train_cpo", "train_on_targets", "train"]

    def contents(folder: Path, pattern: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob(pattern)}

    adapters = [contents(folder / name / "cpo_s" / "adapter", "*.safetensors") for name in ("whole", "ahead")]
    assert adapters[0] and adapters[0] == adapters[1]
    expert_shards = contents(folder / "targets-ahead", "*.safetensors")
    assert expert_shards and expert_shards.items() <= contents(folder / "targets-whole", "*.safetensors").items()

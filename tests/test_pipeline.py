"""The whole method through its command line on the embedded base, and that nothing about how it is run changes what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpo_ray import pipeline
from cpo_ray.config import Config, load
from cpo_ray.training.ledger import read_ledger
from hierarchy import load_hierarchy

ROOT = Path(__file__).parents[1]
TOY = ROOT / "jobs" / "configs" / "toy.toml"
#: The embedded demonstration, as short as it can be.
SHORT = (
    "data.toy_pictures=90",
    "targets.shard_size=8",
    "targets.draws=2",
    "expert.optimization.steps=3",
    "expert.optimization.warmup_steps=0",
    "expert.optimization.global_batch=8",
    "expert.optimization.workers=1",
    "preference.optimization.steps=5",
    "preference.optimization.warmup_steps=0",
    "preference.optimization.global_batch=8",
    "preference.optimization.workers=1",
    "preference.optimization.checkpoint_every=2",
    "preference.baselines=[]",
    "evaluation.pictures=12",
    "evaluation.inference_steps=2",
    "evaluation.batch=6",
    "evaluation.samples=3",
)


def settings(folder: Path, name: str, *overrides: str) -> list[str]:
    return [
        *SHORT,
        f"run.output={folder}",
        f"run.name={name}",
        f"data.folder={folder / 'data'}",
        f"targets.folder={folder / f'targets-{name}'}",
        *overrides,
    ]


def config(folder: Path, name: str, *overrides: str) -> Config:
    return load(TOY, settings(folder, name, *overrides))


def job(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.mark.ray
@pytest.mark.slow
def test_main_job_from_nothing_to_the_report(tmp_path: Path) -> None:
    arguments = settings(tmp_path, "whole")
    done = job("train_cpo.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "#A_neg" in done.stdout and "cpo_s" in done.stdout and "mlflow ui" in done.stdout
    run = tmp_path / "whole"
    page = (run / "evaluation" / "report.html").read_text()
    assert "data:image/png;base64," in page and "http-equiv" not in page
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
    shown = [file.name for file in (tmp_path / "mlartifacts").rglob("samples*.png")]
    assert len(shown) == 4, "three of stage 2 and one of the expert are in MLflow"

    card = (run / "cpo_s" / "adapter" / "README.md").read_text()
    measured = result["models"]["cpo_s"]
    tree = load_hierarchy(config(tmp_path, "whole").data.hierarchy)
    for line in (
        "license_name: Apache-2.0",
        f"| hierarchy | {tree.name} {tree.version}, {tree.content_hash} |",
        "| omega_win | 1.0 |",
        "| beta | ",
        "| training pictures | ",
        "| data | 90 pictures, ",
        "| last step: loss | ",
        "12 pictures, of the same prompts and noise",
        f"| cpo_s | {measured['negatives']['mean']:.2f} [",
        f" | {measured['content']['mean']:.3f} | ",
    ):
        assert line in card, line
    kept = [file for file in (tmp_path / "mlartifacts").rglob("README.md") if "objective | cpo_s" in file.read_text()]
    assert [file.read_text() for file in kept] == [card], "the card in MLflow is the one here"

    again = job("train_cpo.py", *arguments)
    assert again.returncode == 2
    assert "already holds a run; pass --resume" in again.stderr and "Traceback" not in again.stderr
    other = job("train_cpo.py", "--resume", *arguments, "preference.beta=7.0")
    assert other.returncode == 2 and "beta = 7.0" in other.stderr

    # What exists is not made again: the adapter stays as it is, to the byte.
    adapter = run / "cpo_s" / "adapter" / "pytorch_lora_weights.safetensors"
    before = adapter.stat().st_mtime_ns
    resumed = job("evaluate.py", *arguments)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert adapter.stat().st_mtime_ns == before
    assert (run / "cpo_s" / "adapter" / "README.md").read_text() == card


@pytest.mark.ray
@pytest.mark.slow
def test_same_adapter_whatever_computes_the_targets(tmp_path: Path, ray_session: None) -> None:
    """One actor beside training, or three ahead of it: the same bytes, in the target shards and in the adapter."""
    first = config(tmp_path, "beside", "targets.overlap=true", "targets.max_actors=1")
    run = pipeline.open_run(first)
    pipeline.train_expert(run)
    pipeline.align(run, "cpo_s")
    expert = tmp_path / "beside" / "expert" / "adapter"
    ahead = ("targets.overlap=false", "targets.min_actors=3", "targets.max_actors=3", f"expert.adapter={expert}")
    second = pipeline.open_run(config(tmp_path, "ahead", *ahead, "targets.cpus_per_actor=0.3"))
    pipeline.align(second, "cpo_s")

    def contents(folder: Path, pattern: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob(pattern)}

    adapters = [contents(tmp_path / name / "cpo_s" / "adapter", "*.safetensors") for name in ("beside", "ahead")]
    assert adapters[0] and adapters[0] == adapters[1]
    expert_shards = contents(tmp_path / "targets-ahead", "*.safetensors")
    assert expert_shards.items() <= contents(tmp_path / "targets-beside", "*.safetensors").items()

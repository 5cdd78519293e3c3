"""The benchmark of the real sizes, at a small one, where Ray, DeepSpeed and MLflow cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpo_ray.config.registry import FAMILIES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
#: A module that is None cannot be imported.
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('ray', 'deepspeed', 'mlflow', 'optuna', 'aiohttp')))"


def test_it_runs_without_the_cluster_and_says_what_is_missing(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ["gpu_step.py", "--size", "small", "--batch", "1", "--rounds", "1", "--output", str(output)]
    code = f"{WITHOUT}; sys.argv = {arguments}; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_step; gpu_step.main()"
    run = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=BENCHMARKS.parent, timeout=200
    )
    assert run.returncode == 0, run.stderr
    record = json.loads(output.read_text())
    assert "THE FIGURES OF THE REAL MODELS ON A GPU ARE MISSING" in run.stdout
    assert record["gpu_figures"] == "missing" and record["matrix_teraflop_per_second"] > 0
    assert set(record["families"]) == {f"{name} lora" for name in FAMILIES.names}
    for found in record["families"].values():
        counted, cases = found["counted_per_sample"], found["cases"]
        assert set(cases) >= {"expert stage", "training step", "CPO sample", "naive loop"}
        # A step with a frozen base: forward, gradients of activations, a little for the adapter, no gradients of weights.
        assert 2.0 < counted["step"]["teraflop"] / counted["forward"]["teraflop"] < 2.6
        assert counted["live forward"]["kernels"] > counted["forward"]["kernels"]
        for case in cases.values():
            assert case["measured / predicted"] == pytest.approx(case["seconds_per_sample"] / case["predicted"])
            assert case["samples_per_second"] * case["seconds_per_sample"] == pytest.approx(1)
        assert found["ratios"]["naive loop / CPO sample"] > 0

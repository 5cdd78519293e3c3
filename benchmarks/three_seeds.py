"""Stage 2 over three training seeds: the order of training and the first weights change, and nothing else does.

    make demo
    python benchmarks/three_seeds.py [--demo runs/toy] [--seeds 1 2]

The demo's own run is seed 0. Every further seed runs `jobs/train_cpo.py` with the demo's settings on its expert and its targets,
so no frozen model is called, and is measured on the same held-out prompts and noise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from cpo_ray.tracking import git_commit

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs", "toy"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "three_seeds.json")
    parser.add_argument("overrides", nargs="*", help="further section.key=value")
    options = parser.parse_args()
    seeds = {"0": numbers(options.demo)} | {str(seed): one_seed(seed, options.demo, options.overrides) for seed in options.seeds}
    record = {"command": " ".join(["python", *sys.argv]), "commit": git_commit(), "seeds": seeds}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")


def one_seed(seed: int, demo: Path, overrides: list[str]) -> dict[str, dict[str, object]]:
    """Train and evaluate one seed; the numbers of its table."""
    name = f"{demo.name}-seed-{seed}"
    arguments = [f"run.name={name}", f"run.output={demo.parent}", f"preference.seed={seed}"]
    arguments += [f"expert.adapter={demo / 'expert' / 'adapter'}", "preference.baselines=[]", "evaluation.samples=0", *overrides]
    job = [sys.executable, str(ROOT / "jobs" / "train_cpo.py"), "--config", str(demo / "config.toml"), "--resume"]
    subprocess.run([*job, *arguments], check=True)
    return numbers(demo.parent / name)


def numbers(run: Path) -> dict[str, dict[str, object]]:
    """Return what counts of a finished run: by model its scores and changes, without what was found in single pictures."""
    result = json.loads((run / "evaluation" / "result.json").read_text())
    return {model: {key: value for key, value in values.items() if key != "labels"} for model, values in result["models"].items()}


if __name__ == "__main__":
    main()

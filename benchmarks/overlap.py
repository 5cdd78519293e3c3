"""How much of the shorter stage hides behind the longer one when targets are computed while training runs.

    python benchmarks/overlap.py [--steps 40]

Three runs of the same work with real Ray: targets alone, training alone on finished targets, both at once.  On two cores, one
expert actor and one training worker of one thread each, start-up included in all three.

Prediction, written before the first run: a sample costs the expert five forwards and the student two to three, so targets are
the slower stage, and training, which waits for them, ends one shard and one start-up later: overlapped / slower alone ≈ 1.1 to
1.2; one after the other it would be about 1.5.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpo_ray.config import Config, load
from cpo_ray.pipeline import train_sft
from cpo_ray.run import Run, open_run
from cpo_ray.stages import train_on_targets

ROOT = Path(__file__).parents[1]


def align(run: Run) -> None:
    """Stage 2 of a run, with its targets."""
    train_on_targets(run, run.alignment(run.config.preference.objective))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def settings(name: str, targets: str, *more: str) -> Config:
            return load(
                ROOT / "jobs" / "configs" / "toy.toml",
                [
                    f"run.output={folder}",
                    f"run.name={name}",
                    f"data.folder={folder / 'data'}",
                    "domain.pictures=400",
                    f"targets.folder={folder / targets}",
                    "targets.min_actors=1",
                    "targets.max_actors=1",
                    "expert.optimization.steps=2",
                    "expert.optimization.warmup_steps=0",
                    f"preference.optimization.steps={options.steps}",
                    "preference.optimization.workers=1",
                    "evaluation.samples=0",
                    *more,
                ],
            )

        train_sft(settings("expert", "t"))
        expert = f"expert.adapter={folder / 'expert' / 'expert' / 'adapter'}"

        def seconds(work: Callable[..., Any], *arguments: Any) -> float:
            started = time.monotonic()
            work(*arguments)
            return time.monotonic() - started

        together = seconds(align, open_run(settings("together", "a", expert)))
        alone = open_run(settings("apart", "b", expert, "targets.overlap=false"))
        both = seconds(align, alone)
        again = seconds(align, open_run(settings("again", "b", expert, "targets.overlap=false")))
    produce = both - again
    result = {
        "seconds": {"targets alone": produce, "training alone": again, "overlapped": together, "one after the other": both},
        "overlapped / slower stage alone": together / max(produce, again),
        "one after the other / slower stage alone": both / max(produce, again),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Compare what k trials on shared targets cost with k runs that each compute their own.

    python benchmarks/sweep_cost.py [--steps 40] [--trials 2 4 8] [--output FILE]

Both train k points (ω from 1 to 3) of the embedded base on the same pictures with the same expert, on two cores, with
real Ray and all start-up; a run by itself is `jobs/train_cpo.py` without its evaluation, one after the other, targets beside
training on the whole machine; the sweep is `tune/search_cpo.py`, which computes targets once and then has two trials at a time.
The base is given as a folder, so that the sweep draws two pictures per trial and measures none of them.  CPU time is that of all
processes below this one, read twice a second, so the last half second of each is lost.

Prediction, written before the first run: by forwards, a sample costs 5 units among the targets and 3 in training, so k trials
cost (5 + 3 k) / (8 k) of k runs: 0.69 at k = 2, 0.53 at k = 4, 0.45 at k = 8.
Measured per sample (benchmarks/targets_against_naive.py) it is 61 and 29 ms: 0.66, 0.49, 0.41.  Start-up blurs it both ways: a
run starts workers and target actors, about 25 s of CPU time each, a trial its workers and a driver.  So CPU time: 0.7, 0.55, 0.5,
and ≤ 0.5 at k = 8 if 40 steps are enough for the start-up not to matter.  Wall time: as CPU time, since both fill two cores, and
a little better for the sweep, which has no moment with one process alone but at its end.  Disk: 1 / k.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil

from cpo_ray.config import Config, load
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.pipeline import train_sft
from cpo_ray.run import open_run
from cpo_ray.stages import train_on_targets
from cpo_ray.sweep.search import search
from cpo_ray.sweep.space import point_config
from cpo_ray.tracking import git_commit

CONFIG = Path(__file__).parents[1] / "jobs" / "configs" / "toy_sweep.toml"


@dataclass
class Spent:
    """Seconds of a block: on the clock, and of all processes below this one."""

    wall: float = 0.0
    cpu: float = 0.0


class Meter:
    """Adds up CPU time of this process and all below it, also of those that end while it looks."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, float], float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def measure(self) -> Iterator[Spent]:
        spent, started, before = Spent(), time.monotonic(), self._total()
        yield spent
        spent.wall, spent.cpu = time.monotonic() - started, self._total() - before

    def _look(self) -> None:
        while True:
            self._total()
            time.sleep(0.5)

    def _total(self) -> float:
        with self._lock:
            this = psutil.Process()
            for process in (this, *this.children(recursive=True)):
                try:
                    times = process.cpu_times()
                    self._seconds[process.pid, process.create_time()] = times.user + times.system
                except psutil.NoSuchProcess:
                    continue
            return sum(self._seconds.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--trials", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(Path(temporary), options.steps, sorted(options.trials))
    text = json.dumps({"commit": git_commit(), "steps": options.steps, **result}, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def compare(folder: Path, steps: int, counts: list[int]) -> dict[str, dict[str, dict[str, float]]]:
    """By k, the ratios of sweep to runs and what they are made of."""
    meter, most = Meter(), counts[-1]
    train_sft(settings(folder, "expert", steps, "expert.optimization.steps=2", "expert.optimization.warmup_steps=0"))
    expert = f"expert.adapter={folder / 'expert' / 'expert' / 'adapter'}"
    runs: list[Spent] = []
    for number, omega in enumerate(omegas(most)):
        config = settings(folder, f"run-{number}", steps, expert, "preference.optimization.workers=2",
                          "preference.optimization.cpus_per_worker=0.5")  # fmt: skip
        with meter.measure() as spent:
            run = open_run(point_config(config, {"omega": omega}))
            train_on_targets(run, run.alignment(run.config.preference.objective))
        runs.append(spent)
    found = {}
    for k in counts:
        name = f"sweep-{k}"
        config = settings(folder, name, steps, expert, f"sweep.space={{ omega = {omegas(k)} }}")
        with meter.measure() as spent:
            search(config)
        alone = Spent(sum(run.wall for run in runs[:k]), sum(run.cpu for run in runs[:k]))
        own_disk = sum(size(folder / f"targets-run-{number}") for number in range(k))
        found[str(k)] = {
            "wall, sweep / runs": spent.wall / alone.wall,
            "cpu, sweep / runs": spent.cpu / alone.cpu,
            "disk, sweep / runs": size(folder / f"targets-{name}") / own_disk,
            "wall seconds of the sweep": spent.wall,
            "wall seconds of the runs": alone.wall,
            "cpu seconds of the sweep": spent.cpu,
            "cpu seconds of the runs": alone.cpu,
            "megabytes on disk of the sweep": size(folder / f"targets-{name}") / 1e6,
            "megabytes read per second and trial": read_rate(folder / name, steps * 32, size(folder / f"targets-{name}")),
        }
    return {"k": found}


def settings(folder: Path, name: str, steps: int, *more: str) -> Config:
    """A run or a sweep with targets of its own, as little else as can be."""
    few = ["domain.pictures=700", "evaluation.inference_steps=1", "sweep.pictures=2", "sweep.rungs=1", "sweep.held_out=16"]
    places = [f"run.output={folder}", f"data.folder={folder / 'data'}", f"targets.folder={folder / f'targets-{name}'}"]
    base = [
        f"run.name={name}",
        f"model.base={ToyDomain.base}",
        f"preference.optimization.steps={steps}",
        "preference.optimization.learning_rate=1e-5",  # at which no ω diverges; what a step costs is the same
    ]
    return load(CONFIG, [*few, *places, *base, *more])


def omegas(k: int) -> list[float]:
    """k values from 1 to 3."""
    return [1 + 2 * i / max(1, k - 1) for i in range(k)]


def size(folder: Path) -> int:
    """Bytes of the shards below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def read_rate(sweep: Path, samples: int, stored: int) -> float:
    """Megabytes per second that a trial reads while it trains: what a sample takes on disk times samples per second."""
    rates: list[float] = []
    for file in sweep.glob("trials/*/metrics.jsonl"):
        rates.append(mean(json.loads(line)["samples_per_second"] for line in file.read_text().splitlines()[1:]))
    return stored / samples * mean(rates) / 1e6


if __name__ == "__main__":
    main()

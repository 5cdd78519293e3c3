"""Break a small real training in every way that can be arranged on one machine, resume it, and compare it with one left alone.

    python benchmarks/chaos.py                     all rows
    python benchmarks/chaos.py "Ctrl-C" "shards flipped"

Each row is a real process of stage 1 on a real Ray. Lost and doubled items are counted from the ledger. A step
or a shard is redone if it was there when the fault happened.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from cpo_ray.config import Config
from cpo_ray.core.files import read_log
from cpo_ray.training.artifacts.ledger import read_ledger
from cpo_ray.training.artifacts.records import METRICS

STEPS, STOPPED_AT, PATIENCE = 12, 5, 600.0
WEIGHTS = Path("expert", "adapter", "pytorch_lora_weights.safetensors")


def stage_1(config: Config, resume: bool = False) -> None:
    """The job that is broken: the expert's training alone."""
    from cpo_ray.run import opened
    from cpo_ray.stages import train_expert

    with opened(config, resume) as run:
        train_expert(run)
        run.tracker.finish()


@dataclass
class Job:
    """Stage 1 in a folder of its own, as a process that can be broken and started again."""

    folder: Path
    data: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "chaos"

    def start(self, *more: str) -> subprocess.Popen[str]:
        overrides = [
            f"run.output={self.folder / 'runs'}", "run.name=chaos", f"data.folder={self.data}", "domain.pictures=120",
            f"targets.folder={self.folder / 'targets'}", "targets.shard_size=8", "targets.max_actors=1", "targets.min_actors=1",
            "targets.cpus_per_actor=0.5", f"expert.optimization.steps={STEPS}", "expert.optimization.warmup_steps=0",
            "expert.optimization.global_batch=8", "expert.optimization.workers=1", "expert.optimization.cpus_per_worker=1",
            "expert.optimization.checkpoint_every=2", "evaluation.samples=0",
        ]  # fmt: skip
        command = [sys.executable, __file__, "--stage-1", *overrides, *more]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "said.txt").open("a") as said:
            return subprocess.Popen(command, stdout=said, stderr=said, text=True)

    def steps(self) -> int:
        return len(read_log(self.run / "expert" / METRICS, skip_damaged=True))

    def until(self, steps: int, process: subprocess.Popen[str]) -> None:
        """Wait until so many steps are logged. Raises TimeoutError."""
        ended = time.monotonic() + PATIENCE
        while self.steps() < steps and process.poll() is None:
            if time.monotonic() > ended:
                raise TimeoutError(f"{self.folder} has made {self.steps()} of {steps} steps")
            time.sleep(0.05)

    def shards(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in (self.folder / "targets").glob("*/*.safetensors")}

    def sentence(self) -> str:
        """Return what was said last that is not a count."""
        lines = (self.folder / "said.txt").read_text().strip().splitlines()
        told = ("stopped", "failed", "goes on", "damaged", "worked on", "cut", "WARNING", "killed")
        return next((line for line in reversed(lines) if any(word in line for word in told)), "")


def newest(pattern: str, job: Job) -> Path:
    return sorted(job.run.glob(pattern))[-1]


def stop_with(number: int) -> Callable[[Job, subprocess.Popen[str]], None]:
    return lambda job, process: process.send_signal(number)


def kill_child(name: str) -> Callable[[Job, subprocess.Popen[str]], None]:
    def kill(job: Job, process: subprocess.Popen[str]) -> None:
        for child in psutil.Process(process.pid).children(recursive=True):
            if name in " ".join(child.cmdline()):
                child.kill()

    return kill


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def each_shard(job: Job, change: Callable[[Path], None]) -> None:
    for path in (job.folder / "targets").glob("*/*.safetensors"):
        change(path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


#: What happens to the running process, and what happens to its files before it is resumed.
ROWS: dict[str, tuple[Callable[[Job, subprocess.Popen[str]], None], Callable[[Job], None]]] = {
    "expert actor killed": (kill_child("ExpertActor"), lambda job: None),
    "rank killed": (kill_child("RayTrainWorker"), lambda job: None),
    "driver killed": (stop_with(signal.SIGKILL), lambda job: None),
    "SIGTERM": (stop_with(signal.SIGTERM), lambda job: None),
    "Ctrl-C": (stop_with(signal.SIGINT), lambda job: None),
    "newest checkpoint cut": (stop_with(signal.SIGINT), lambda job: cut(newest("expert/*/step-*/engine.safetensors", job))),
    "newest checkpoint gone": (stop_with(signal.SIGINT), lambda job: shutil.rmtree(newest("expert/*/step-*", job))),
    "Ray's list cut": (stop_with(signal.SIGINT), lambda job: cut(newest("expert/*/checkpoint_manager_snapshot.json", job))),
    "shards flipped": (stop_with(signal.SIGINT), lambda job: each_shard(job, flip)),
    "shards cut": (stop_with(signal.SIGINT), lambda job: each_shard(job, cut)),
    "ledger emptied": (stop_with(signal.SIGINT), lambda job: cut(newest("expert/ledger/*.jsonl", job), 0)),
    "metrics torn": (stop_with(signal.SIGINT), lambda job: cut(job.run / "expert" / METRICS, 0.9)),
}


def row(name: str, job: Job, reference: bytes) -> dict[str, object]:
    """Break the job, resume it, and say what that has cost."""
    fault, between = ROWS[name]
    process = job.start()
    job.until(STOPPED_AT, process)
    fault(job, process)
    code = process.wait(PATIENCE)
    told = [job.sentence()]
    at, shards = job.steps(), job.shards()
    redone, recovered = 0, 0.0
    if code:
        between(job)
        before, started = job.steps(), time.monotonic()
        process = job.start("--resume")
        while job.steps() >= before and process.poll() is None:  # the steps after the checkpoint are taken off the log
            time.sleep(0.02)
        redone = at - job.steps()
        job.until(job.steps() + 1, process)
        recovered = time.monotonic() - started
        code = process.wait(PATIENCE)
        told.append(job.sentence())
    new = job.shards()
    return {
        "fault": name,
        **accounts(job),
        "steps redone": redone,
        "shards redone": sum(new.get(shard) != number for shard, number in shards.items()),
        "seconds to recover": round(recovered, 1),
        "adapter equal": code == 0 and (job.run / WEIGHTS).read_bytes() == reference,
        "sentence": " | ".join(dict.fromkeys(filter(None, told))).replace(str(job.folder), "…"),
    }


def accounts(job: Job) -> dict[str, int]:
    """Count the items that were lost and doubled, by the job's own plan."""
    counted = Counter(step for step, _ in read_ledger(job.run / "expert"))
    twice = Counter(read_ledger(job.run / "expert"))
    return {
        "lost": sum(8 - counted[step] for step in range(STEPS) if counted[step] < 8),
        "doubled": sum(number - 1 for number in twice.values()),
    }


def main() -> None:
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    line.add_argument("--output", type=Path, help="also write the table as JSON")
    options = line.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        alone = Job(folder / "alone", folder / "data")
        if alone.start().wait(PATIENCE):
            raise SystemExit((alone.folder / "said.txt").read_text())
        reference = (alone.run / WEIGHTS).read_bytes()
        table = []
        for number, name in enumerate(options.rows or ROWS):
            table.append(row(name, Job(folder / str(number), folder / "data"), reference))
            print(json.dumps(table[-1]), flush=True)
    if options.output:
        options.output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    if "--stage-1" in sys.argv:
        from cpo_ray.command_line import parser, run

        sys.argv.remove("--stage-1")
        raise SystemExit(run(parser("Train the expert that is broken.", resumable=True), stage_1))
    main()

"""The embedded demonstration as short as it can be, started as a user does: from a command line, or submitted to a cluster."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TOY = ROOT / "jobs" / "configs" / "toy.toml"
BIN = Path(sys.executable).parent
PORT, DASHBOARD, AGENT = 6_399, 8_299, 8_298  # not among the ports that Ray gives to workers
SHORT = (
    "domain.pictures=90",
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
    "evaluation.actors=1",
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


@contextmanager
def head(folder: Path) -> Iterator[dict[str, str]]:
    """A head node of its own ports and token, as the environment of a process that may submit to it."""
    sockets = Path("/tmp") / f"cpo-{secrets.token_hex(3)}"  # socket paths may not be long
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_worker_niceness": "0",  # see the shared Ray in conftest.py
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--port={PORT}"]
    command += [f"--dashboard-port={DASHBOARD}", f"--dashboard-agent-listen-port={AGENT}"]
    command += [f"--temp-dir={sockets}", "--node-ip-address=127.0.0.1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(60):
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", DASHBOARD)) == 0:
                    break
            assert process.poll() is None, "the head node did not start"
            time.sleep(1)
        yield environment
    finally:
        # Nobody needs this head any more, `ray stop` would stop every Ray here, and to end by itself takes half a minute.
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(30)


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD}", "--working-dir", "."]
    command += ["--", "python", "jobs/train_cpo.py", *arguments]
    for _ in range(30):  # the dashboard answers before there is somebody who runs jobs
        said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=850)
        if "No available agent" not in said.stdout + said.stderr:
            break
        time.sleep(1)
    return said

"""The README's cluster lines, really done: a head with token authentication, a job submitted to it, its exit code."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_pipeline import ROOT, settings

BIN = Path(sys.executable).parent
PORT, DASHBOARD = 6_399, 8_299  # not among the ports that Ray gives to workers


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node of its own ports and token; ends with its whole process group, since `ray stop` would stop every Ray here."""
    folder = Path("/tmp") / f"cpo-{secrets.token_hex(3)}"  # socket paths may not be long
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--port={PORT}"]
    command += [f"--dashboard-port={DASHBOARD}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield environment
    process.terminate()
    process.wait(60)


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD}", "--working-dir", "."]
    command += ["--", "python", "jobs/train_cpo.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.ray
@pytest.mark.slow
def test_job_is_submitted_with_a_token(head: dict[str, str], tmp_path: Path) -> None:
    for _ in range(60):
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", DASHBOARD)) == 0:
                break
        time.sleep(1)
    wrong = submit(head, "run.sed=1")
    assert wrong.returncode != 0 and "unknown key 'run.sed'; did you mean 'seed'?" in wrong.stdout + wrong.stderr

    # Without the token the door is closed.
    stranger = {key: value for key, value in head.items() if not key.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"}
    refused = submit(stranger, "run.sed=1")
    assert refused.returncode != 0 and "run.sed" not in refused.stdout

    small = ("expert.optimization.steps=1", "preference.optimization.steps=1", "evaluation.pictures=6", "evaluation.samples=0")
    done = submit(head, *settings(tmp_path, "submitted"), *small)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert (tmp_path / "submitted" / "evaluation" / "report.html").exists()

"""A Ray that a job starts: nobody else on the machine looks into its folder, and nobody outside reaches its ports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpo_ray.config import ConfigError
from cpo_ray.session import own_folder


def test_the_folder_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    folder = own_folder()
    folder.chmod(0o777)
    assert own_folder() == folder and folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "elsewhere")
    for other in (lambda: folder.symlink_to(tmp_path / "elsewhere"), lambda: folder.write_text("")):
        other()
        with pytest.raises(ConfigError, match="set RAY_TMPDIR to a folder of yours"):
            own_folder()
        folder.unlink()


LOOK = """
import os, psutil, ray
from pathlib import Path
from cpo_ray.session import connect, own_folder
connect()
session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
assert session.is_relative_to(own_folder()), session
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
print(len(processes), *sorted(address.removeprefix("::ffff:") for address in listening))
"""


@pytest.mark.ray
def test_all_ports_of_a_ray_that_a_job_starts_are_on_loopback() -> None:
    answer = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=600)
    processes, *addresses = answer.stdout.split()
    assert int(processes) > 4 and set(addresses) == {"127.0.0.1"}, (answer.stdout, answer.stderr)

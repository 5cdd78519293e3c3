"""The commit that this code is at."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit(repository: Path = Path(__file__).parents[2]) -> str:
    """Return the commit of this code, with "-dirty" if the folder differs from it; "unknown" without git."""
    try:
        top = _git(repository, "rev-parse", "--show-toplevel")
        # An installed copy may lie inside another project's repository.
        if Path(top).resolve() != repository.resolve():
            return "unknown"
        changes = _git(repository, "status", "--porcelain")
        return _git(repository, "rev-parse", "HEAD") + ("-dirty" if changes else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

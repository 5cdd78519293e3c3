"""Every test works in a clone of its own in which nothing was run yet, so none sees or leaves anything in this one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What a command line or a configuration names by a relative path. The package itself is installed.
LINKED = ("hierarchy", "jobs", "tune")


@pytest.fixture(scope="session", autouse=True)
def clones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the clones. Fixtures that tests share, and the Ray that they start, work in a clone too.

    Fails when a test has left something in the folder of this repository.
    """
    folder, before = tmp_path_factory.mktemp("clones"), visible(ROOT)
    with chdir(clone(folder)):
        yield folder
    assert visible(ROOT) == before, "a test has written into the repository"


@pytest.fixture(autouse=True)
def checkout(clones: Path) -> Iterator[Path]:
    """The working directory of a test."""
    with chdir(clone(clones)):
        yield Path.cwd()


def clone(folder: Path) -> Path:
    """A new folder with links to what a clone of the repository has."""
    made = Path(tempfile.mkdtemp(dir=folder))
    for name in LINKED:
        (made / name).symlink_to(ROOT / name)
    return made


def visible(folder: Path) -> set[str]:
    """The names in a folder without caches, which begin with a dot."""
    return {name for name in os.listdir(folder) if not name.startswith(".")}

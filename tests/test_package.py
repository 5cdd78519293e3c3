"""What an installed package holds: no file that the code reads may be left behind in the repository."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cpo_ray"


def test_every_file_of_the_package_is_installed() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {path for pattern in tool["package-data"]["cpo_ray"] for path in PACKAGE.glob(pattern) if path.is_file()}
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others and others <= shipped, sorted(str(path) for path in others - shipped)


def test_every_folder_with_code_is_a_package() -> None:
    # setuptools leaves out a folder without __init__.py, and with it all that lies below.
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []

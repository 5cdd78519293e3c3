"""The fences of the design: who may import what, and which line breaks it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("cpo_ray", "jobs", "tune") for path in (ROOT / room).rglob("*.py"))

TOY = "cpo_ray/domains/toy/"
MODELS = ("cpo_ray/models/", "cpo_ray/evaluation/scorers/", f"{TOY}pretrain.py")
#: Library, or a room of ours → the only places that import it.
FENCES = {
    "deepspeed": ("cpo_ray/training/engine/",),
    "mlflow": ("cpo_ray/tracking",),
    "diffusers": MODELS,
    "transformers": MODELS,
    "peft": MODELS,
    "aiohttp": ("cpo_ray/annotation/back_ends/endpoint.py", "cpo_ray/reports/guard.py", "cpo_ray/review/server.py"),
    "cpo_ray.domains.toy": (TOY,),
}
#: These stay light: no torch, no ray, wherever in the file the import stands.
LIGHT = (
    "cpo_ray/config/",
    "cpo_ray/hierarchy/",
    "cpo_ray/preflight/findings.py",
    "cpo_ray/training/schedule.py",
    "cpo_ray/command_line.py",
    "cpo_ray/core/schema.py",
    "cpo_ray/core/plan.py",
    "cpo_ray/core/randomness.py",
    "cpo_ray/core/prompts.py",
    "cpo_ray/core/files.py",
    "cpo_ray/core/statistics.py",
    "cpo_ray/core/progress.py",
    "cpo_ray/core/picture_size.py",
    "cpo_ray/data/",
    "jobs/",
    "tune/",
)
#: These know nothing of Ray.
WITHOUT_RAY = ("cpo_ray/core/", "cpo_ray/objectives/", "cpo_ray/models/", "cpo_ray/data/", "cpo_ray/reports/")

#: From low to high; a module imports its own layer and those below, never one above.
LAYERS = (
    ("cpo_ray.config", "cpo_ray.hierarchy"),
    ("cpo_ray.core",),
    ("cpo_ray.objectives",),
    ("cpo_ray.models",),
    ("cpo_ray.data",),
    ("cpo_ray.tracking", "cpo_ray.reports"),
    ("cpo_ray.targets",),
    ("cpo_ray.training",),
    ("cpo_ray.evaluation",),
    ("cpo_ray.annotation",),
    ("cpo_ray.recipes", "cpo_ray.requirements"),
    ("cpo_ray.preflight",),
    ("cpo_ray.session",),
    ("cpo_ray.run",),
    ("cpo_ray.stages",),
    ("cpo_ray.pipeline",),
    ("cpo_ray.sweep", "cpo_ray.review", "cpo_ray.domains"),
    ("cpo_ray.command_line",),
    ("jobs", "tune"),
)


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also inside functions; `from a import b` counts as a.b, since b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def layer(module: str) -> int | None:
    """Position in LAYERS, or None for the package itself and for libraries."""
    found = (n for n, rooms in enumerate(LAYERS) for room in rooms if module == room or module.startswith(f"{room}."))
    return next(found, None)


def breaches(path: str, source: str) -> list[str]:
    """What a file imports that it must not, as `path:line: sentence`."""
    own = layer(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    found = []
    for line, module in imports(source):
        library = module.partition(".")[0]
        for fenced, allowed in FENCES.items():
            if (module == fenced or module.startswith(f"{fenced}.")) and not path.startswith(allowed):
                found.append(f"{path}:{line}: {fenced} is imported in {' and '.join(allowed)} only")
        if library == "ray" and path.startswith(WITHOUT_RAY):
            found.append(f"{path}:{line}: ray does not belong here")
        if library in ("torch", "ray") and path.startswith(LIGHT):
            found.append(f"{path}:{line}: {library} does not belong here, where everything stays quick to import")
        below = layer(module)
        if own is not None and below is not None and below > own:
            found.append(f"{path}:{line}: {module} lies in a higher layer")
    return found


def test_there_is_something_to_walk() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in FILES])
def test_the_fences_hold(path: str) -> None:
    assert breaches(path, (ROOT / path).read_text()) == []


def test_every_module_has_a_layer() -> None:
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert module == "cpo_ray" or layer(module) is not None, f"{module} is in none of LAYERS; say where it belongs"


@pytest.mark.parametrize(
    ("path", "source", "line"),
    [
        ("cpo_ray/training/worker.py", "import os\nimport deepspeed.comm", 2),
        ("cpo_ray/pipeline.py", "from mlflow import MlflowClient", 1),
        ("cpo_ray/evaluation/generate.py", "def f():\n    from diffusers import UNet2DConditionModel", 2),
        ("cpo_ray/core/plan.py", "from torch import Tensor", 1),
        ("cpo_ray/hierarchy/load.py", "import ray", 1),
        ("cpo_ray/models/base.py", "from cpo_ray import pipeline", 1),
        ("cpo_ray/objectives/cpo.py", "from cpo_ray.models.base import Family", 1),
        ("cpo_ray/hierarchy/__init__.py", "import cpo_ray.core.plan", 1),
    ],
)
def test_a_breach_is_seen(path: str, source: str, line: int) -> None:
    (found,) = breaches(path, source)
    assert found.startswith(f"{path}:{line}: ")

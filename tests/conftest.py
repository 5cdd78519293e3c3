"""Fixtures that several test modules share; limits.py has what keeps a run of the tests from hanging."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.ranks import Ranks

    from cpo_ray.targets.expert import ExpertSpec


pytest_plugins = ["support.checkout", "support.limits"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The shared Ray comes last: no other test finds itself in a cluster, and none starts a Ray of its own beside it."""
    items.sort(key=lambda item: "ray_session" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real Ray of two CPUs for all tests that need one. Its folder is short because socket paths may not be long."""
    import ray

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    # No process per training that watches for machines which are taken away. And no low priority, with which Ray's processes
    # would stand still beside other work on a busy machine.
    os.environ |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_worker_niceness": "0"}
    # Ray's processes import what is outside of the package from here, as they would from a user's PYTHONPATH.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks, which all tests share: a process that has DeepSpeed takes seconds to start."""
    from support.ranks import Ranks

    ranks = Ranks(2, tmp_path_factory.mktemp("pair") / "ranks")
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """One rank."""
    from support.ranks import Ranks

    ranks = Ranks(1, tmp_path_factory.mktemp("single") / "ranks")
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four processes that only have to be at the same place at the same time."""
    from support.ranks import Ranks

    ranks = Ranks(4, tmp_path_factory.mktemp("four") / "ranks")
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def expert_spec_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExpertSpec]:
    """For a family by its name: twelve rendered pictures, a small base as diffusers saves it, and an expert adapter of small
    random weights.
    """
    return cache(lambda name: _expert_spec(name, tmp_path_factory.mktemp(f"{name}-expert")))


@pytest.fixture(scope="session")
def expert_spec(expert_spec_of: Callable[[str], ExpertSpec]) -> ExpertSpec:
    return expert_spec_of("sdxl")


@pytest.fixture(scope="session")
def flux_expert_spec(expert_spec_of: Callable[[str], ExpertSpec]) -> ExpertSpec:
    return expert_spec_of("flux")


def _expert_spec(family_name: str, folder: Path) -> ExpertSpec:
    import torch

    from cpo_ray.config import Lora, Model
    from cpo_ray.models import family
    from cpo_ray.models.tiny import Widths
    from cpo_ray.targets.expert import ExpertSpec

    hierarchy = Path(__file__).parents[1] / "hierarchy" / "painting_toy.yaml"
    texts = _annotated_pictures(folder / "data", hierarchy)
    model = Model(family=family_name, base=str(folder / "base"), resolution=64)
    found = family(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found.random_pipeline(found.tiny(Widths(text_tokens=64)), texts).save_pretrained(folder / "base")
        denoiser = found.load_denoiser(model)
        for name in found.add_lora(denoiser, Lora(rank=4, alpha=4), seed=1):
            torch.nn.init.normal_(denoiser.get_parameter(name), std=0.05)
        found.save_adapter(denoiser, None, folder / "adapter")
    return ExpertSpec("expert", model, folder / "data", hierarchy, seed=5, adapter=folder / "adapter")


def _annotated_pictures(folder: Path, hierarchy: Path) -> list[str]:
    """Write a data set with the ids picture-0 … picture-11 and return its words; picture-3 is not square."""
    import numpy as np
    from PIL import Image

    from cpo_ray.core.prompts import Labels
    from cpo_ray.data.shards import write_shards
    from cpo_ray.data.validate import Origin, annotated_row
    from cpo_ray.domains.toy.render import render, sample_scene
    from cpo_ray.hierarchy import load_hierarchy

    tree = load_hierarchy(hierarchy)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(12):
        scene = sample_scene(generator)
        stream = io.BytesIO()
        Image.fromarray(render(scene)).resize((96, 80) if number == 3 else (64, 64)).save(stream, "PNG")
        labels = Labels(scene.content.prompt, scene.positive_ids, scene.negative_ids)
        rows.append(annotated_row(f"picture-{number}", stream.getvalue(), labels, Origin("renderer"), tree))
    write_shards(rows, folder)
    phrases = [pole.phrase for attribute in tree.attributes.values() for pole in attribute.poles.values()]
    return phrases + [row["prompt"] for row in rows]

"""The method, stage by stage.  Each public function is one job; `train_cpo` reads like the paper's algorithm.

    annotated pictures ─► stage 1: expert θ1 ─► targets: frozen outputs of θ1 and the reference ─► stage 2: CPO ─► evaluation

Every stage leaves files in the run's folder and is skipped when they are there, so that --resume is the same code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from cpo_ray.config import Config, ConfigError, Optimization, dump
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.objectives import get_objective
from cpo_ray.plan import Plan, hash_fraction
from cpo_ray.tracking import Tracker
from hierarchy import Hierarchy, load_hierarchy


@dataclass(frozen=True)
class Run:
    """What every stage shares: the settings, the expert knowledge, the data, and where results go."""

    config: Config
    tree: Hierarchy
    dataset: AnnotatedDataset
    folder: Path

    @property
    def training_ids(self) -> tuple[str, ...]:
        """Ids of the training split; a smaller `data.proportion` keeps a nested part of them (paper, Table 3)."""
        share = self.config.data.proportion
        return tuple(i for i in self.dataset.split("train") if hash_fraction(f"proportion/{i}") < share)

    @property
    def good_ids(self) -> tuple[str, ...]:
        """Training pictures with at most one negative attribute, for the supervised baseline."""
        return tuple(i for i in self.training_ids if len(self.dataset.labels(i).negative_ids) <= 1)


def open_run(config: Config, *, resume: bool = False) -> Run:
    """Load and check what the run needs, claim its folder, and connect to Ray.

    Raises ConfigError when the folder holds another run: with --resume the configuration must be the one it was started with.
    """
    tree = load_hierarchy(config.data.hierarchy)
    folder = config.folder.absolute()
    record, resolved = folder / "config.toml", dump(config)
    if record.exists():
        if not resume:
            raise ConfigError(f"{folder} already holds a run; pass --resume to go on with it, or another run.name=NAME")
        if record.read_text() != resolved:
            raise ConfigError(f"{record} differs from the configuration given: {_differences(record.read_text(), resolved)}; "
                              "resume with the run's own configuration, or start another run.name=NAME")
    dataset = prepare_data(config, tree)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(resolved)
    connect()
    return Run(config, tree, dataset, folder)

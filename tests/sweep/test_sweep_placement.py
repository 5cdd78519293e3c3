"""How many trials fit: a table of clusters and demands, worked out by hand; and what is checked before any starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ray.config import ConfigError, load
from cpo_ray.preflight import checks
from cpo_ray.preflight.machine import Resources
from cpo_ray.sweep import search
from cpo_ray.sweep.placement import DRIVER_CPUS, Demand, Room, demand, refusal, trials_at_once

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy_sweep.toml"
DRIVER = Room(DRIVER_CPUS)


def wanted(workers: list[Room], shared: list[Room]) -> Demand:
    return Demand((DRIVER, *workers), tuple(shared))


@pytest.mark.parametrize(
    ("machines", "workers", "shared", "fits"),
    [
        ([Room(2)], [Room(0.85)], [Room(0.1)] * 2, 2),  # the shipped sweep: 0.2 + 2 · 0.9 = 2
        ([Room(2)], [Room(0.9)], [Room(0.1)] * 2, 1),  # 0.2 + 2 · 0.95 is a little too much
        ([Room(2)], [Room(1)], [Room(1)], 0),  # the driver's sliver is missing
        ([Room(1)], [Room(0.5)], [Room(0.4)], 1),
        ([Room(16)], [Room(1)] * 4, [Room(1)], 3),  # 1 + 3 · 4.05 = 13.15
        ([Room(8, 1)], [Room(1, 1)], [Room(1)], 1),  # one GPU: trials follow each other, pictures are drawn on the CPU
        ([Room(8, 1)], [Room(1, 1)], [Room(1, 0.5)], 0),  # drawing would take half of the only GPU
        ([Room(8, 1)], [Room(1, 0.5)], [Room(1, 0.5)], 1),
        ([Room(8, 1)], [Room(1, 0.25)], [Room(1, 0.25)], 3),
        ([Room(8, 8)], [Room(1, 1)], [Room(1, 1)], 6),  # 6 trials take 7.3 CPUs with the actor, a seventh has none
        ([Room(32, 8)], [Room(2, 2)] * 2, [Room(1, 1)], 1),  # 7 GPUs are left: one trial of 4
        ([Room(4, 1), Room(4, 1)], [Room(1, 2)], [Room(1)], 0),  # two GPUs, on two machines
        ([Room(4, 1), Room(4, 1)], [Room(1, 1)] * 2, [Room(1)], 1),  # two workers may live apart
        ([Room(2), Room(2)], [Room(1.5)], [Room(0.2)], 2),
        ([], [Room(1)], [Room(1)], 0),
    ],
)
def test_as_many_as_fit(machines: list[Room], workers: list[Room], shared: list[Room], fits: int) -> None:
    needed = wanted(workers, shared)
    assert trials_at_once(machines, needed, 100) == fits
    assert (refusal(machines, needed) is None) == (fits > 0)


def test_a_limit_holds() -> None:
    assert trials_at_once([Room(64)], wanted([Room(1)], [Room(1)]), 3) == 3


def test_what_is_missing_is_named() -> None:
    found = refusal([Room(2)], wanted([Room(1)] * 4, [Room(1)] * 2))
    assert found is not None and "there are 2 CPUs, so 4.05 CPUs are missing" in found
    found = refusal([Room(8)], wanted([Room(1, 1)], [Room(1, 1)]))
    assert found is not None and "so 0 CPUs and 2 GPUs are missing" in found
    found = refusal([Room(4, 1), Room(4, 1)], wanted([Room(1, 2)], [Room(1)]))
    assert found is not None and "a process that takes 1 CPUs and 2 GPUs must fit on one of 2 machines" in found


def test_the_shipped_sweep_runs_two_trials_on_two_cores() -> None:
    assert trials_at_once([Room(2)], demand(load(TOY)), 100) == 2
    assert trials_at_once([Room(1.2)], demand(load(TOY)), 100) == 1


def test_every_trial_is_checked_before_any_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for room in (checks, search):
        monkeypatch.setattr(room, "available", lambda: Resources("here", 2.0, 0.0, main_bytes=25e9))
    space = "sweep.space={ preference.optimization.steps = [5, 120], preference.lora.rank = [4, 8], omega = [1.0, 2.0] }"
    hierarchy = f"data.hierarchy={TOY.parents[2] / 'hierarchy' / 'painting_toy.yaml'}"
    # The file's own steps are replaced in every trial, so that they are no fault.
    config = load(TOY, [space, hierarchy, "preference.optimization.steps=3"])
    found = search.findings(config)
    (told,) = [finding.sentence for finding in found if finding.verdict == "missing"]
    assert told.startswith(
        "the trial ω 1, steps 5, rank 4: preference.optimization.warmup_steps is 10, yet training ends after 5"
    )
    sentences = [finding.sentence for finding in found]
    assert "all trials are planned for as ω 2, steps 120, rank 8" in sentences
    assert "sweep: 8 trials by search 'grid', 2 at once" in sentences


def test_values_that_do_not_go_together_are_refused_before_anything_starts() -> None:
    space = "sweep.space={ preference.optimization.optimizer = ['adamw', 'adafactor'] }"
    config = load(TOY, [space])
    stage_two = config.preference.optimization.model_copy(update={"zero_stage": 2})
    broken = config.model_copy(update={"preference": config.preference.model_copy(update={"optimization": stage_two})})
    assert config.sweep is not None
    with pytest.raises(
        ConfigError, match=r"^optimizer adafactor: 'preference.optimization': optimizer 'adafactor' needs zero_stage 0"
    ):
        search.planned_trials(broken, config.sweep, [Room(2)])

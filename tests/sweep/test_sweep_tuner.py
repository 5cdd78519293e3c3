"""Who decides on the points of a sweep: Optuna as Ray Tune asks it, without a trial being run."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

from cpo_ray.config import Config, load
from cpo_ray.config.sweep import Sweep
from cpo_ray.config.sweep.searched import Point
from cpo_ray.domains.toy.scorers import DistanceToGood
from cpo_ray.evaluation.scorers.negatives import Negatives
from cpo_ray.sweep.tuner import distributions, optuna_search, scheduler

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy_sweep.toml"
SPACE = "{ omega = { low = 1.0, high = 3.0 }, beta = { low = 1.0, high = 1e4, log = true }, objective = ['cpo', 'cpo_s'] }"
TOLD: list[tuple[Point, tuple[float, float]]] = [
    ({"omega": 1.0 + i / 10, "beta": 10.0**i, "objective": "cpo_s"}, (3.0 - i / 10, 40.0 + i)) for i in range(4)
]
AIMS = (Negatives(), DistanceToGood())


def config(search: str = "tpe", space: str = SPACE) -> Config:
    return load(TOY, [f"sweep.space={space}", f"sweep.search={search}", "sweep.trials=12"])


def sweep(**changes: object) -> Sweep:
    return Sweep.model_validate({"space": {"omega": [1.0]}, **changes})


def test_the_space_is_the_same_for_optuna() -> None:
    more = ", proportion = [0.1, 1.0], preference.lora.rank = { low = 4, high = 64, log = true } }"
    found = config(space=SPACE.removesuffix(" }") + more).sweep
    assert found is not None and distributions(found.space) == {
        "omega": FloatDistribution(1.0, 3.0),
        "beta": FloatDistribution(1.0, 1e4, log=True),
        "proportion": CategoricalDistribution((0.1, 1.0)),
        "objective": CategoricalDistribution(("cpo", "cpo_s")),
        "preference.lora.rank": IntDistribution(4, 64, log=True),
    }


@pytest.mark.parametrize("search", ["tpe", "multi_objective"])
def test_a_resumed_search_knows_what_was_measured_and_does_not_begin_anew(search: str) -> None:
    fresh, resumed = optuna_search(config(search), [], AIMS), optuna_search(config(search), TOLD, AIMS)
    first, next_ = fresh.suggest("a")["point"], resumed.suggest("a")["point"]
    assert set(first) == set(next_) == {"omega", "beta", "objective"} and first != next_
    assert 1 <= float(next_["omega"]) <= 3 and 1 <= float(next_["beta"]) <= 1e4
    assert optuna_search(config(search), [], AIMS).suggest("a")["point"] == first  # the seed decides

    resumed.on_trial_complete("a", {"negatives": 2.5, "distance": 41.0})
    values = [trial.values for trial in resumed._ot_study.trials]
    count = 1 if search == "tpe" else 2
    assert values == [list(pair)[:count] for _, pair in TOLD] + [[2.5, 41.0][:count]]


def test_a_suggestion_has_the_settings_of_its_own_objective() -> None:
    pull = "support.outside.objective:PULL"
    space = f"{{ beta = [1.0], objective = ['cpo', '{pull}'], preference.objective.strength = {{ low = 1.0, high = 2.0 }} }}"
    told: list[tuple[Point, tuple[float, float]]] = [
        ({"beta": 1.0, "objective": "cpo"}, (3.0, 40.0)),
        ({"objective": pull, "preference.objective.strength": 1.5}, (2.0, 41.0)),
    ]
    search = optuna_search(config(space=space), told, AIMS)
    names = {tuple(search.suggest(str(number))["point"]) for number in range(12)}
    assert names == {("beta", "objective"), ("objective", "preference.objective.strength")}


def test_a_trial_that_failed_tells_optuna_nothing() -> None:
    search = optuna_search(config(), TOLD, AIMS)
    search.suggest("a")
    search.on_trial_complete("a", error=True)
    assert [trial.state.name for trial in search._ot_study.trials] == ["COMPLETE"] * 4 + ["FAIL"]


def test_schedulers_go_by_rungs() -> None:
    assert type(scheduler(sweep(), AIMS)) is FIFOScheduler
    asha = scheduler(sweep(scheduler="asha", rungs=4, grace_rungs=2), AIMS)
    assert isinstance(asha, ASHAScheduler) and asha._time_attr == "rung"
    # It compares trials at rung 2, and at rung 4 where they have ended by themselves.
    assert [rung for bracket in asha._brackets for rung, _ in bracket._rungs] == [4, 2]
    assert isinstance(scheduler(sweep(scheduler="median"), AIMS), MedianStoppingRule)


def test_shipped_settings_have_one_search() -> None:
    found = load(TOY).sweep
    assert found is not None and found.search == "grid" and type(scheduler(found, AIMS)) is FIFOScheduler

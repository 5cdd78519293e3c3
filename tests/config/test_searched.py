"""What can be searched: any setting of stage 2, under its key or a short name, with values that its own section takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cpo_ray.config import ConfigError, Section, changed, dump, load
from cpo_ray.config.sweep.axis import Axis
from cpo_ray.config.sweep.searched import checked

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy_sweep.toml"
PULL = "support.outside.objective:PULL"


def searched(space: str, *more: str) -> dict[str, Axis]:
    found = load(TOY, [f"sweep.space={space}", *more]).sweep
    assert found is not None
    return found.space


@pytest.mark.parametrize(
    ("space", "values"),
    [
        ("{ beta = [1, 2] }", {"beta": (1.0, 2.0)}),
        ("{ 'preference.objective.beta' = [1.0] }", {"beta": (1.0,)}),
        ("{ preference.lora.rank = [4, 8.0] }", {"preference.lora.rank": (4, 8)}),
        ("{ preference.optimization.optimizer = ['adafactor'] }", {"preference.optimization.optimizer": ("adafactor",)}),
        # Short names come first, in the order of their table.
        ("{ preference.seed = [1], beta = [2.0], omega = [1.0] }", {"omega": (1.0,), "beta": (2.0,), "preference.seed": (1,)}),
        ("{ preference.optimization.ema_decay = { low = 0, high = 0.5 } }", {"preference.optimization.ema_decay": (0.0, 0.5)}),
        ("{ preference.lora.rank = { low = 4.0, high = 16, log = true } }", {"preference.lora.rank": (4, 16)}),
    ],
)
def test_a_setting_is_searched_by_its_key_or_short_name_and_gives_its_type(
    space: str, values: dict[str, tuple[object, ...]]
) -> None:
    found = searched(space, "sweep.search=random", "sweep.trials=2")
    assert {name: axis.ends for name, axis in found.items()} == values and list(found) == list(values)
    types = {name: [type(value) for value in axis.ends] for name, axis in found.items()}
    assert types == {name: [type(value) for value in ends] for name, ends in values.items()}


def test_the_command_line_adds_an_axis() -> None:
    found = load(TOY, ["sweep.space.preference.lora.rank=[4, 8]", "sweep.space.omega=[1.0]"]).sweep
    assert found is not None and {name: axis.values for name, axis in found.space.items()} == {
        "omega": (1.0,),
        "preference.lora.rank": (4, 8),
    }


def test_a_sweep_survives_a_round_trip(tmp_path: Path) -> None:
    space = "{ omega = [1.0], preference.lora.rank = [4], preference.lora.alpha = { low = 1.0, high = 9.0, log = true } }"
    config = load(TOY, [f"sweep.space={space}", "sweep.search=random", "sweep.trials=2"])
    (tmp_path / "copy.toml").write_text(dump(config))
    copy = load(tmp_path / "copy.toml")
    assert copy == config and dump(copy) == dump(config)
    assert '"preference.lora.rank" = [4]' in dump(config)


def test_a_resumed_sweep_may_have_more_trials_and_another_choice_of_the_same_points(tmp_path: Path) -> None:
    record, random = tmp_path / "config.toml", ("sweep.search=random", "sweep.trials=3")
    record.write_text(dump(load(TOY, random)))
    free = ("sweep.trials=9", "sweep.minutes=5.0", "sweep.choice=knee", "sweep.max_concurrent=1", "sweep.retries=0")
    assert changed(record, load(TOY, [*random, *free])) == []
    assert changed(record, load(TOY, [*random, "sweep.space={ omega = [1.0, 2] }", "sweep.rungs=1"])) == [
        "sweep.rungs = 1 (was 2)",
        "sweep.space.omega = [1.0, 2.0] (was [1.0, 1.5, 2.0, 2.5, 3.0])",
    ]


def test_an_objective_from_outside_has_its_own_settings_searched() -> None:
    own = "{ preference.objective.strength = [1, 2], omega = [1.0] }"
    assert searched(own, f"preference.objective={PULL}")["preference.objective.strength"].values == (1.0, 2.0)
    # What one of the searched objectives has is enough: the trials of the others go without.
    both = f"{{ objective = ['cpo', '{PULL}'], preference.objective.strength = [1.0], beta = [5.0] }}"
    assert list(searched(both)) == ["beta", "objective", "preference.objective.strength"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sweep.space={}", "there is nothing to search; name at least one axis in sweep.space, such as omega"),
        (
            "sweep.space={ omega = [1.0], omega_win = [1.0] }",
            "omega and omega_win both set preference.objective.omega_win; search one",
        ),
        (
            "sweep.space={ beta = [1.0], preference.objective.beta = [1.0] }",
            "beta and preference.objective.beta both set preference.objective.beta",
        ),
        # Values have the bounds of their settings, and errors their reasons.
        ("sweep.space={ beta = [1.0, 0.0] }", "'sweep.space.beta' is 0.0: input should be greater than 0"),
        ("sweep.space={ omega = [1.0, -1.0] }", "'sweep.space.omega' is -1.0: input should be greater than or equal to 0"),
        ("sweep.space={ proportion = [0.5, 1.5] }", "'sweep.space.proportion' is 1.5: input should be less than or equal to 1"),
        (
            "sweep.space={ preference.lora.rank = [4.5] }",
            "'sweep.space.preference.lora.rank' is 4.5: input should be a valid integer",
        ),
        (
            "sweep.space={ preference.optimization.optimizer = ['adamw', 'adam'] }",
            "is 'adam': input should be 'adamw', 'adafactor' or 'adamw_8bit'",
        ),
        (
            "sweep.space={ preference.optimization.optimizer = ['adamw_8bit'] }",
            "is 'adamw_8bit': optimizer 'adamw_8bit' needs a GPU",
        ),
        (
            "sweep.space={ objective = ['cpo', 'spo'] }",
            "'sweep.space.objective' is 'spo': there is no objective 'spo'; choose one of",
        ),
        ("sweep.space={ beta = ['high'] }", "'sweep.space.beta' is 'high': input should be a valid number"),
        # What is no axis.
        ("sweep.space={ omega = [2.0, 2.0] }", "a value stands in the list twice"),
        ("sweep.space={ omega = { low = 2.0 } }", "a range needs both low and high"),
        ("sweep.space={ omega = { low = 0.0, high = 1.0, log = true } }", "must begin above 0"),
        ("sweep.space={ omega = { low = 1.0, high = 2.0 } }", "a grid needs values, and omega is a range"),
        ("sweep.space={ omega = { lo = 1.0 } }", "unknown key 'sweep.space.omega.lo'; did you mean 'low'?"),
        ("sweep.space={ omega = 2.0 }", "'sweep.space.omega' is 2.0: give a list of values, such as [1.0, 2.0], or a range"),
        ("sweep.space={ preference.lora.targets = [['to_q']] }", "['to_q'] is in the list; a searched value is a number, a text"),
        # What cannot be searched.
        (
            "sweep.space={ omeg = [1.0] }",
            "'sweep.space.omeg': there is no such setting; did you mean 'omega'? what can be searched is",
        ),
        ("sweep.space={ rank = [4] }", "'sweep.space.rank': there is no such setting; did you mean 'preference.lora.rank'?"),
        (
            "sweep.space={ preference.objective.strength = [1.0] }",
            "'sweep.space.preference.objective.strength': there is no such setting",
        ),
        ("sweep.space={ run.seed = [1] }", "'sweep.space.run.seed': only settings of stage 2 can be searched"),
        ("sweep.space={ expert.lora.rank = [4] }", "all trials share one expert, one data set and one set of targets"),
        ("sweep.space={ preference.lora = [4] }", "this is a whole section; search its settings, such as preference.lora.rank"),
        ("sweep.space={ preference.optimization.workers = [1, 2] }", "it does not change what a training learns"),
        # The section's own rules.
        ("sweep.search=tpe", "say how many trials"),
        ("sweep.grace_rungs=0", "'sweep.grace_rungs' is 0"),
    ],
)
def test_a_wrong_sweep_is_answered_with_a_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TOY, [override])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


class Switched(Section):
    on: bool = False


class Whole(Section):
    preference: Switched


def test_a_range_is_for_numbers() -> None:
    with pytest.raises(ValidationError, match="a range is for numbers; list the values instead"):
        checked(Whole, {"preference": {}}, {"preference.on": Axis(low=0.0, high=1.0)})
    axis = Axis.model_validate([True, False])
    assert checked(Whole, {"preference": {}}, {"preference.on": axis}) == {"preference.on": axis}


def test_a_scheduler_needs_a_rung_to_stop_at() -> None:
    with pytest.raises(ConfigError, match="a scheduler can stop nothing after 2 of 2 rungs"):
        load(TOY, ["sweep.scheduler=median", "sweep.grace_rungs=2"])

"""How the objective of stage 2 and its baselines are chosen, told and written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.outside.objective import PullSettings

from cpo_ray.config import Config, ConfigError, changed, dump, load, override
from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.cpo_stabilised import StabilisedSettings
from cpo_ray.objectives.preference import PreferenceSettings
from cpo_ray.objectives.sft import SupervisedSettings

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy.toml"
FILE = StabilisedSettings(name="cpo_s", omega_win=1.0, omega_lose=1.0, beta=1000.0)


def again(config: Config, folder: Path) -> Config:
    (folder / "again.toml").write_text(dump(config))
    return load(folder / "again.toml")


@pytest.mark.parametrize(
    ("overrides", "objective"),
    [
        ((), FILE),
        (("preference.objective.beta=7",), FILE.model_copy(update={"beta": 7.0})),
        # A name takes the place of the whole section, so the defaults of that objective hold and nothing of the file.
        (("preference.objective=cpo",), PreferenceSettings(name="cpo")),
        (("preference.objective=cpo", "preference.objective.beta=7"), PreferenceSettings(name="cpo", beta=7.0)),
        (("preference.objective={ name = 'cpo', omega_win = 3 }",), PreferenceSettings(name="cpo", omega_win=3.0)),
        # Its key replaces the name alone.
        (("preference.objective.name=cpo",), PreferenceSettings(name="cpo", omega_win=1.0, omega_lose=1.0, beta=1000.0)),
        (
            ('preference.objective={ margin = "normalised", omega_win = 1 }',),
            StabilisedSettings(name="cpo_s", margin="normalised", omega_win=1.0),
        ),
        (("preference.objective=sft",), SupervisedSettings(name="sft", most_negatives=1)),
        (("preference.objective=sft", "preference.objective.most_negatives=2"), SupervisedSettings(name="sft", most_negatives=2)),
        (
            ("preference.objective=support.outside.objective:PULL", "preference.objective.strength=3"),
            PullSettings(name="support.outside.objective:PULL", strength=3.0),
        ),
    ],
)
def test_an_objective_is_chosen_and_told(overrides: tuple[str, ...], objective: ObjectiveSettings, tmp_path: Path) -> None:
    config = load(TOY, overrides)
    assert config.preference.objective == objective and type(config.preference.objective) is type(objective)
    assert again(config, tmp_path) == config and changed(tmp_path / "again.toml", config) == []
    assert list(config.preference.trainings.values()) == [config.preference.objective]


def test_the_default_is_stabilised_cpo_as_in_the_paper(tmp_path: Path) -> None:
    text = TOY.read_text()
    first, end = text.index("[preference.objective]"), text.index("[preference.lora]")
    (tmp_path / "short.toml").write_text(text[:first] + text[end:])
    default = StabilisedSettings(name="cpo_s", omega_win=2.0, omega_lose=2.0, beta=5000.0)
    assert load(tmp_path / "short.toml").preference.objective == default
    assert load(tmp_path / "short.toml", ["preference.objective.beta=7"]).preference.objective == default.model_copy(
        update={"beta": 7.0}
    )


def test_a_baseline_takes_what_it_is_not_told_from_the_objective(tmp_path: Path) -> None:
    config = load(TOY, ['preference.baselines=["sft", { name = "cpo", beta = 3.0 }]', "preference.objective.most_negatives=4"])
    assert config.preference.trainings == {
        "cpo_s": FILE.model_copy(update={"most_negatives": 4}),
        "sft": SupervisedSettings(name="sft", most_negatives=1),
        "cpo": PreferenceSettings(name="cpo", omega_win=1.0, omega_lose=1.0, beta=3.0),
    }
    assert 'baselines = ["sft", { name = "cpo", beta = 3.0 }]' in dump(config), "written as given, so that it stays a consequence"
    assert again(config, tmp_path) == config
    other = override(config, ["preference.objective.omega_win=1.5"])
    assert other.preference.trainings["cpo"].model_dump()["omega_win"] == 1.5


def test_trainings_of_one_name_are_one_or_refused() -> None:
    assert list(load(TOY, ['preference.baselines=["cpo_s", "cpo"]']).preference.trainings) == ["cpo_s", "cpo"]
    with pytest.raises(ConfigError, match="two different trainings would be called 'cpo_s'") as caught:
        load(TOY, ['preference.baselines=[{ name = "cpo_s", beta = 1.0 }]'])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "preference.objective.omega_wim=1",
            "unknown key 'preference.objective.omega_wim'; did you mean 'omega_win'? valid keys here: beta, margin",
        ),
        ("preference.beta=1", "unknown key 'preference.beta'; did you mean 'objective.beta'? valid keys here: baselines, lora"),
        ("preference.objective.beta=0", "'preference.objective.beta' is 0: input should be greater than 0"),
        (
            "preference.objective=spo",
            "'preference.objective' is 'spo': there is no objective 'spo'; choose one of sft, sft_all, cpo, cpo_s",
        ),
        ("preference.objective.name=sft", "unknown key 'preference.objective.omega_win'; valid keys here: most_negatives, name"),
        (
            "preference.objective.most_negatives=-1",
            "'preference.objective.most_negatives' is -1: input should be greater than or",
        ),
        ("preference.objective=cpo_ray.objectives.cpo:NEEDS", "objective 'cpo_ray.objectives.cpo:NEEDS' has no class `settings`"),
        ("preference.objective=support.outside:OTHER", "objective 'support.outside:OTHER': support.outside has no 'OTHER'"),
        (
            'preference.baselines=["sft", { name = "cpo", betta = 1 }]',
            "unknown key 'preference.baselines.1.betta'; did you mean",
        ),
        ('preference.baselines=["spo"]', "'preference.baselines.0' is 'spo': there is no objective 'spo'"),
    ],
)
def test_a_wrong_objective_is_answered_with_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TOY, [override])
    assert sentence in str(caught.value) and str(caught.value).count("\n") <= 2


def test_the_training_seed_is_the_run_s_unless_it_is_given() -> None:
    assert load(TOY, ["run.seed=3"]).training_seed == 3
    assert load(TOY, ["run.seed=3", "preference.seed=0"]).training_seed == 0

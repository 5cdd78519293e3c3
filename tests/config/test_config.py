"""Shipped configurations, and what a wrong one is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ray.config import ConfigError, changed, dump, load

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
TOY = CONFIGS / "toy.toml"


def test_there_is_something_to_ship() -> None:
    presets = {"toy.toml", "sdxl_lora.toml", "sdxl_full.toml", "flux_lora.toml", "flux_full.toml"}
    assert presets <= {path.name for path in CONFIGS.glob("*.toml")}


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.glob("*.toml")) if not path.stem.startswith(("annotate", "review"))],
    ids=lambda path: path.stem,
)
def test_every_shipped_config_parses_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(dump(config))
    assert load(copy) == config
    assert (Path(__file__).parents[2] / config.data.hierarchy).is_file()


def test_texts_with_quotes_and_accents_survive_a_round_trip(tmp_path: Path) -> None:
    config = load(TOY, ["run.output='a \"quoted\" folder \\ é'"])
    assert str(config.run.output) == 'a "quoted" folder \\ é'
    (tmp_path / "copy.toml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "copy.toml") == config


def test_overrides_have_types_and_bare_words() -> None:
    config = load(TOY, ["run.seed=7", "targets.overlap=false", 'preference.lora.targets=["to_q"]', "expert.lora.alpha=2"])
    assert (config.run.seed, config.targets.overlap, config.expert.lora.alpha) == (7, False, 2.0)
    assert config.preference.lora.targets == ("to_q",)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("preference.optimization.learning_rat=1", r"did you mean 'learning_rate'\? valid keys here: .*workers"),
        ("modle.family=sdxl", r"unknown key 'modle'; did you mean 'model'\?"),
        ("run.seed=-1", r"'run.seed' is -1: input should be greater than or equal to 0"),
        ("run.seed=many", r"'run.seed' is 'many': input should be a valid integer"),
        ("run.name=a/b", r"'run.name' is 'a/b'"),
        ("preference.optimization.epochs=2", r"give exactly one of steps and epochs"),
        ("preference.optimization.offload_optimizer=true", r"offload_optimizer needs zero_stage 1, 2 or 3"),
        ("preference.optimization={steps=1, optimizer='adafactor', zero_stage=2}", r"optimizer 'adafactor' needs zero_stage 0"),
        ("preference.optimization.optimizer=adamw_8bit", r"optimizer 'adamw_8bit' needs a GPU: set gpus_per_worker"),
        ("run.seed", r"override 'run.seed' is not of the form section.key=value"),
        ("seed=1", r"override 'seed=1' is not of the form"),
        ("run.seed.more=1", r"goes through 'seed', which is a value, not a section"),
    ],
)
def test_a_wrong_override_is_answered_with_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(TOY, [override])
    assert "\n" not in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(TOY, ["run.seed=-1", "targets.draws=0", "model.colour=blue"])
    assert len(str(caught.value).splitlines()) == 3


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file at .*; complete ones are in jobs/configs/"):
        load(tmp_path / "none.toml")
    file = tmp_path / "half.toml"
    file.write_text(TOY.read_text().replace('family = "sdxl"', ""))
    with pytest.raises(ConfigError, match=r"'model.family' is missing; add it to the file or pass model.family=VALUE"):
        load(file)
    file.write_text("[run\n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(file)


def test_a_resume_may_change_what_a_run_is_computed_with_and_not_what_comes_out(tmp_path: Path) -> None:
    started = tmp_path / "config.toml"
    started.write_text(dump(load(TOY)))
    free = (
        "preference.optimization.workers=3",
        "expert.optimization.zero_stage=2",
        "targets.max_actors=7",
        "evaluation.actors=1",
        'preference.baselines=["sft", { name = "cpo", beta = 3.0 }]',
    )
    assert changed(started, load(TOY, free)) == []
    other = load(
        TOY, [*free, "preference.objective.beta=7.0", "preference.optimization.optimizer=adafactor", "model.revision=abc"]
    )
    assert changed(started, other) == [
        "model.revision = 'abc' (was None)",
        "preference.objective.beta = 7.0 (was 1000.0)",
        "preference.optimization.optimizer = 'adafactor' (was 'adamw')",
    ]


def test_a_setting_that_is_newer_than_a_run_has_its_default_there(tmp_path: Path) -> None:
    record, text = tmp_path / "config.toml", dump(load(TOY))
    lines = [line for line in text.splitlines() if not line.startswith(("ema_decay", "proportion"))]
    assert len(lines) < len(text.splitlines())
    record.write_text("\n".join(lines))
    assert changed(record, load(TOY)) == []
    assert changed(record, load(TOY, ["data.proportion=0.5"])) == ["data.proportion = 0.5 (was 1.0)"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "is missing"), ("[run\n", "Expected"), (dump(load(TOY)) + "\n[lost]\nkey = 1\n", "unknown key 'lost'")],
    ids=["empty", "cut", "a key of another version"],
)
def test_a_cut_or_foreign_record_is_one_sentence(text: str, reason: str, tmp_path: Path) -> None:
    record = tmp_path / "config.toml"
    record.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{record} cannot be compared .*{reason}.*; give this run another run.name[^\n]*$"):
        changed(record, load(TOY))

"""A comparison: a finished run is resumed with baselines, without Ray and with stages that only say what they are asked for."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cpo_ray import pipeline, stages
from cpo_ray.config import Config, changed, dump, load
from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.recipes import NoPicturesError, alignment
from cpo_ray.training.health import TrainingHealthError

TOY = Path(__file__).parents[1] / "jobs" / "configs" / "toy.toml"
BASELINES = 'preference.baselines=["sft", "cpo"]'


def asked_for(config: Config, monkeypatch: pytest.MonkeyPatch, failing: str = "", without_pictures: str = "") -> list[str]:
    """What `train_cpo` asks of the stages, in order, and what it says."""
    found: list[str] = []

    def train_on_targets(run: Any, training: Any) -> None:
        found.append(training.name)
        if training.name == failing:
            raise TrainingHealthError("it diverged")

    def aligned(told: ObjectiveSettings) -> Any:
        if told.name == without_pictures:
            alignment(config, told, {}, Path("expert"))
        return SimpleNamespace(name=told.name)

    def begun(config: Config, resume: bool) -> Any:
        return nullcontext(SimpleNamespace(config=config, say=found.append, alignment=aligned))

    monkeypatch.setattr(pipeline, "opened", begun)
    monkeypatch.setattr(stages, "train_on_targets", train_on_targets)
    for stage in ("train_expert", "check_obedience", "evaluate"):
        monkeypatch.setattr(stages, stage, lambda run, stage=stage: found.append(stage))
    pipeline.train_cpo(config, resume=True)
    return found


def test_the_demo_trains_one_objective_and_a_resume_adds_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo, compared = load(TOY), load(TOY, [BASELINES])
    assert asked_for(demo, monkeypatch) == ["train_expert", "check_obedience", "cpo_s", "evaluate"]
    for begun, resumed in ((demo, compared), (compared, demo)):
        (tmp_path / "config.toml").write_text(dump(begun))
        assert changed(tmp_path / "config.toml", resumed) == []
    assert asked_for(compared, monkeypatch) == ["train_expert", "check_obedience", "cpo_s", "sft", "cpo", "evaluate"]


def test_a_baseline_that_diverges_is_left_out_and_the_objective_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked_for(load(TOY, [BASELINES]), monkeypatch, failing="sft")
    assert found[3:] == ["sft", "sft: it diverged; it is left out of the comparison", "cpo", "evaluate"]
    with pytest.raises(TrainingHealthError):
        asked_for(load(TOY, [BASELINES]), monkeypatch, failing="cpo_s")


def test_a_baseline_without_pictures_is_left_out_and_the_objective_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked_for(load(TOY, [BASELINES]), monkeypatch, without_pictures="sft")
    assert "has no picture for this training" in found[3] and found[3].endswith("it is left out of the comparison")
    assert found[4:] == ["cpo", "evaluate"]
    with pytest.raises(NoPicturesError):
        asked_for(load(TOY, [BASELINES]), monkeypatch, without_pictures="cpo_s")

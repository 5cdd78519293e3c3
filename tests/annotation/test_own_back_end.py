"""A back end from outside of the package is chosen by its import path, and everything takes it as one of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.annotating import annotate, settings
from support.outside.back_end import PraiseSettings

from cpo_ray.annotation.back_ends.base import BackEndUnusable, open_back_end
from cpo_ray.command_line import CONFIGS
from cpo_ray.config import ConfigError, load_as
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.domains.toy.dataset import draw_pictures
from cpo_ray.domains.toy.measuring import MeasuringSettings

OWN = "support.outside.back_end:Praise"


def praised(folder: Path, most: int) -> AnnotationConfig:
    """Pictures in `folder` for the back end from outside."""
    config = settings(folder)
    told = {**config.annotation.model_dump(), "back_end": {"kind": OWN, "most": most}}
    return AnnotationConfig.model_validate({"pictures": config.pictures.model_dump(), "annotation": told})


def test_it_annotates_and_its_answers_are_kept_by_all_that_it_was_told(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 2, seed=3)
    config = praised(tmp_path, most=1)
    assert config.annotation.identity == {"back_end": OWN, "model": "flattery-1", "most": 1, "side": 1024, "format": "png"}
    outcomes = annotate(config)
    assert all(not outcome.problem and outcome.positive_ids and not outcome.negative_ids for outcome in outcomes.values())
    assert {outcome.effort.known for outcome in annotate(config).values()} == {o.effort.asked for o in outcomes.values()}
    again = annotate(praised(tmp_path, most=2))
    assert {outcome.effort.known for outcome in again.values()} == {0}, "told otherwise it answers otherwise"


def test_its_settings_are_as_strict_as_those_of_the_package() -> None:
    toy = CONFIGS / "annotate_toy.toml"
    config = load_as(AnnotationConfig, toy, [f"annotation.back_end={OWN}", "annotation.back_end.most=3"])
    assert config.annotation.back_end == PraiseSettings(kind=OWN, most=3)
    with pytest.raises(ConfigError, match=r"unknown key 'annotation.back_end.mots'; did you mean 'most'\? valid keys here: kind"):
        load_as(AnnotationConfig, toy, [f"annotation.back_end={OWN}", "annotation.back_end.mots=3"])


def test_a_class_that_is_no_back_end_is_told_so() -> None:
    path = "support.outside.not_there:Praise"
    with pytest.raises(ConfigError, match=r"support\.outside\.not_there cannot be imported"):
        load_as(AnnotationConfig, CONFIGS / "annotate_toy.toml", [f"annotation.back_end={path}"])
    with pytest.raises(BackEndUnusable, match=r"is not a subclass of cpo_ray\.annotation\.back_ends\.base\.BackEnd"):
        open_back_end(MeasuringSettings(kind=f"{__name__}:NoBackEnd"), "cpu")


class NoBackEnd:
    """Has the form of one, and is none."""

    def __init__(self, settings: MeasuringSettings, device: str) -> None: ...

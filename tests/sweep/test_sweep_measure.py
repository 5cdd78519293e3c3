"""The actor that draws and measures for a sweep, in this process: models of scorers beside everything else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from support.tiny_scorers import tiny_clip

from cpo_ray.config import Config, load
from cpo_ray.core.prompts import Labels
from cpo_ray.domains.toy.render import CONTENTS, Scene
from cpo_ray.domains.toy.render import render as draw
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.measure import Measured
from cpo_ray.evaluation.rounds import Round
from cpo_ray.evaluation.scorers.base import NotScored
from cpo_ray.sweep.measure import Measurer

TOY_SWEEP = Path(__file__).parents[2] / "jobs" / "configs" / "toy_sweep.toml"


def measurer(folder: Path, monkeypatch: pytest.MonkeyPatch, goals: str) -> Measurer:
    def drawn(self: Measurer, adapter: Path | None) -> list[Picture]:
        return [draw(Scene(content, frozenset(), True, seed)) for seed, content in enumerate(CONTENTS[:4])]

    monkeypatch.setattr(Measurer, "_draw", drawn)
    config: Config = load(
        TOY_SWEEP,
        [
            f"run.output={folder}",
            f"sweep.goals={goals}",
            f'evaluation.scorers=["negatives", {{name = "clip", weights = "{folder}/clip"}}, '
            f'{{name = "imagereward", weights = "{folder}/none"}}]',
        ],
    )
    return Measurer(config, Round(tuple(Labels(content.prompt, (), ()) for content in CONTENTS[:4]), 1))


def test_a_sweep_goes_on_without_a_scorer_that_it_does_not_go_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_clip(tmp_path / "clip")
    found, shown = measurer(tmp_path, monkeypatch, '["clip", "negatives"]').measure(None)
    assert found is not None and list(found.values) == ["negatives", "clip"] and len(set(found.values["clip"])) == 4
    assert found.labels is None and len(shown) == 4
    assert "there are no weights at" in found.left_out["imagereward"]
    assert Measured.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_a_sweep_does_not_go_by_a_scorer_without_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_clip(tmp_path / "clip")
    with pytest.raises(NotScored, match="the sweep goes by imagereward, which has no number: there are no weights at"):
        measurer(tmp_path, monkeypatch, '["imagereward"]').measure(None)

"""The door of the family: one from outside is reached by its import path and used for everything; what is none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_training import conditioning, write_base
from support.trained import trained

from cpo_ray.config import ConfigError, Model, load
from cpo_ray.config.registry import FAMILIES
from cpo_ray.models import family
from cpo_ray.preflight import checks
from cpo_ray.preflight.findings import Finding
from cpo_ray.preflight.machine import Resources
from cpo_ray.training.artifacts.export import TrainedWeights, export_weights

OUTSIDE = "support.outside.family:FAMILY"
ROOT = Path(__file__).parents[2]
TOY = ROOT / "jobs" / "configs" / "toy.toml"


def findings(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[Finding]:
    """What --check says of the toy with these overrides on a machine that is stated."""
    monkeypatch.setattr(checks, "available", lambda: Resources("here", 2.0, 0.0, main_bytes=25e9))
    return checks.check(load(TOY, [f"data.hierarchy={ROOT / 'hierarchy' / 'painting_toy.yaml'}", *overrides]))


def test_an_outside_family_loads_predicts_and_exports(tmp_path: Path) -> None:
    known = write_base(tmp_path / "base")
    outside = known.model_copy(update={"family": OUTSIDE})
    found = family(outside)
    x_t, time, told = torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), conditioning(known, 2)
    plain = family(known).predict(family(known).load_denoiser(known), x_t, time, told)
    torch.testing.assert_close(found.predict(found.load_denoiser(outside), x_t, time, told), 0.9 * plain)
    made = trained(outside, 0.05)
    export_weights(TrainedWeights(outside, made.denoiser, made.state), tmp_path / "adapter", {}, made.probe)
    assert "- subdued\n" in (tmp_path / "adapter" / "README.md").read_text()
    assert len(list((tmp_path / "adapter" / "formats").iterdir())) == 2


def test_an_outside_family_is_checked_and_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_base(tmp_path / "base", OUTSIDE)
    found = findings(monkeypatch, f"model.family={OUTSIDE}", f"model.base={model.base}", f"data.folder={tmp_path / 'data'}")
    assert not [finding for finding in found if finding.verdict == "missing"]
    (line,) = [finding.sentence for finding in found if "holds a" in finding.sentence]
    assert line.endswith("holds a StableDiffusionXLPipeline")
    assert any("an actor that computes targets" in finding.sentence and finding.planned for finding in found)


def test_a_family_that_is_not_there_is_said_to_be_none() -> None:
    with pytest.raises(ConfigError, match=r"'sdxx': choose one of sdxl, flux, or give your own as module:name"):
        load(TOY, ["model.family=sdxx"])
    assert load(TOY, [f"model.family={OUTSIDE}"]).model.family == OUTSIDE


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.at_all:FAMILY", "nowhere.at_all cannot be imported"),
        ("support.outside.family:Subdued", "is a class; name an object of it, such as FAMILY = Subdued()"),
        ("support.outside.family:__name__", "has no name, denoiser, .*, which cpo_ray.models.base.Family asks for"),
    ],
)
def test_what_is_no_family_is_refused_and_the_check_says_so(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("()", r"\(\)")):
        family(Model(family=name, base="x"))
    (line,) = [
        found for found in findings(monkeypatch, f"model.family={name}", f"data.folder={tmp_path}") if name in found.sentence
    ]
    assert line.verdict == "missing"


@pytest.mark.parametrize("name", FAMILIES.names)
def test_every_family_has_the_same_files(name: str) -> None:
    found = family(Model(family=name, base="x"))
    assert found.name == name
    files = {path.name for path in (ROOT / "cpo_ray" / "models" / name).glob("*.py")}
    assert files == {"__init__.py", "family.py", "encoders.py", "names.py", "published.py", "tiny.py"}

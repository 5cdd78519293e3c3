"""Each thing that --check finds, on configurations that have exactly that fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ray.config import Config, load
from cpo_ray.preflight import checks
from cpo_ray.preflight.machine import Resources

TOY = Path("jobs/configs/toy.toml")
OWN = "package:cpo_ray.domains.toy/assets/base"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is a fixed one: no other Ray is looked for."""
    monkeypatch.setattr(checks, "available", lambda: Resources("here", 2.0, 0.0, main_bytes=25e9))


def toy(*overrides: str) -> Config:
    return load(TOY, list(overrides))


def missing(config: Config) -> list[str]:
    return [finding.sentence for finding in checks.check(config) if finding.verdict == "missing"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["preference.optimization.workers=9"], "stage 2 with its targets takes 5.3 of 2 CPUs here"),
        (["targets.gpus_per_actor=0.5", "expert.adapter=."], "takes 1.8 of 2 CPUs and 1 of 0 GPUs here"),
        (["expert.optimization.workers=2", "expert.optimization.global_batch=1"], "1 for 2 workers"),
        (["expert.optimization.warmup_steps=500"], "training ends after 80 steps"),
        # 800 training pictures in batches of 32 are 25 steps
        (["preference.optimization={epochs=1, warmup_steps=40}"], "training ends after 25 steps"),
        (["preference.optimization={epochs=1, warmup_steps=40}"], "learning rate; set it to at most 2, or train longer"),
        (["targets.min_actors=3", "targets.cpus_per_actor=0.1"], "min_actors is 3, more than targets.max_actors (2)"),
        (["data.pictures.buckets=aspect", "data.pictures.multiple=12"], "multiple is 12; it must be a multiple of 8"),
        (["tracking.uri=runs"], "which is not an MLflow store"),
        (["domain.pictures=0"], "there is no folder runs/data/toy"),
        (["data.hierarchy=nowhere.yaml"], "nowhere.yaml"),
        (["model.base=./nowhere"], "there is no folder ./nowhere"),
        (["expert.adapter=nowhere"], "there is nothing at nowhere"),
        (
            ["expert.conditions={null=0, negative=0, content=0, content_positive=0, all=0}"],
            "all shares of expert.conditions",
        ),
        (
            ["domain.use=none", "domain.pictures=0", f"model.base={OWN}", "expert.stop_at_gate=true"],
            "expert.stop_at_gate needs somebody who reads",
        ),
    ],
)
def test_a_fault_is_named(overrides: list[str], expected: str) -> None:
    (sentence,) = [sentence for sentence in missing(toy(*overrides)) if expected in sentence]
    assert "\n" not in sentence


def test_a_folder_that_is_no_pipeline_is_told_from_a_hub_id(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "plan_findings", lambda *_: ())  # counting the published SDXL, as in test_planner, takes long
    (checkout / "folder").mkdir()
    assert any("has no model_index.json" in sentence for sentence in missing(toy("model.base=folder")))
    (checkout / "folder" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert any("holds a FluxPipeline" in sentence for sentence in missing(toy("model.base=folder")))
    findings = checks.check(toy("model.base=somebody/some-model"))
    assert any(f.verdict == "note" and "somebody/some-model is not on this machine" in f.sentence for f in findings)


def test_few_pictures_with_a_preset_are_told_what_would_be_enough() -> None:
    """20 pictures with the preset of SDXL, at its epochs and batch: the warm-up shrinks with the steps."""
    training = load(TOY.with_name("sdxl_lora.toml")).preference.optimization
    (told,) = [f for f in checks._optimization("preference.optimization", training, 20) if "too few" in f.sentence]
    assert told.verdict == "note"
    assert "2 epochs of 20 pictures are 2 steps of 32, too few to learn from; 160 epochs would be 100" in told.sentence
    assert [finding.verdict for finding in checks._optimization("preference.optimization", training, 1600)] == []


def test_flags_that_let_data_run_code_are_refused() -> None:
    name = checks.UNSAFE_FLAGS[0]
    assert checks.unsafe_flags({name: "1"}) == [name]
    assert checks.unsafe_flags({name: "0", "PATH": "1"}) == []
    assert [finding.verdict for finding in checks._security({"RAY_AUTH_MODE": "disabled"})] == ["note"]
    assert list(checks._security({"RAY_AUTH_MODE": "token"})) == []


@pytest.mark.parametrize(("learning_rate", "verdict"), [(1e-8, "missing"), (1.28e-6, None), (5e-7, "note")])
def test_a_full_training_that_bfloat16_swallows_is_refused(learning_rate: float, verdict: str | None) -> None:
    """64 steps of SDXL: the public code's rate per sample, that times a batch of 128, and something between them."""
    full = ("model.dtype=bfloat16", "preference.optimization.parameters=full", "preference.optimization.steps=64")
    config = toy(*full, "preference.optimization.warmup_steps=0", f"preference.optimization.learning_rate={learning_rate}")
    found = [finding.verdict for finding in checks.check(config) if "bfloat16 shows so small a change" in finding.sentence]
    assert found == ([verdict] if verdict else [])


def test_a_package_that_an_optimizer_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpo_ray.config.optimization.find_spec", lambda name: None)
    eight_bit = toy("preference.optimization.optimizer=adamw_8bit", "preference.optimization.gpus_per_worker=1")
    assert any("needs the package bitsandbytes, which is not installed: pip install" in text for text in missing(eight_bit))


def test_a_cluster_that_does_not_answer_is_said_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real look at the cluster
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert any("no cluster at RAY_ADDRESS=127.0.0.1:1" in sentence for sentence in missing(toy()))

"""Exported weights do what the trained model does, or are not published."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import diffusers
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_training import write_base
from support.trained import LORA, Trained, trained

from cpo_ray.config import Model
from cpo_ray.config.registry import FAMILIES
from cpo_ray.models import family
from cpo_ray.training.artifacts.card import add_evaluation, base_licence, card_text
from cpo_ray.training.artifacts.export import (
    ExportError,
    TrainedWeights,
    export_weights,
    probe_output,
    verify_export,
)

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module", params=FAMILIES.names)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return write_base(tmp_path_factory.mktemp("base"), request.param)


def export(t: Trained, folder: Path, parameters: Literal["lora", "full"] = "lora") -> None:
    export_weights(TrainedWeights(t.model, t.denoiser, t.state, parameters), folder, {"objective": "cpo_s"}, t.probe)


def test_an_adapter_goes_round_and_has_a_card(model: Model, tmp_path: Path) -> None:
    t = trained(model, 0.05)
    export(t, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["README.md", "formats", WEIGHTS]
    assert "| objective | cpo_s |" in (tmp_path / "adapter" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "the temporary folder is gone"
    reloaded = family(model).load_denoiser(model, tmp_path / "adapter")
    output = probe_output(family(model), reloaded, t.probe.x_t, t.probe.timestep, t.probe.conditioning)
    torch.testing.assert_close(output, t.probe.output, rtol=1e-4, atol=1e-5)


def test_an_export_replaces_an_earlier_one(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    export(trained(model, 0.05), folder)
    first = (folder / WEIGHTS).read_bytes()
    export(trained(model, 0.02), folder)
    assert (folder / WEIGHTS).read_bytes() != first


def test_weights_that_change_nothing_are_refused_and_not_published(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="changes nothing"):
        export(trained(model, 0.0), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [0.05, 1e-4])
def test_a_lost_alpha_is_found_even_where_the_adapter_does_little(model: Model, tmp_path: Path, change: float) -> None:
    t = trained(model, change)
    folder = tmp_path / "adapter"
    export(t, folder)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    (key,) = (key for key, value in metadata.items() if "lora_alpha" in value)
    settings = json.loads(metadata[key])
    (alpha,) = (name for name in settings if name.endswith("lora_alpha"))
    assert settings[alpha] == 16
    settings[alpha] = 4
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {**metadata, key: json.dumps(settings)})
    with pytest.raises(ExportError, match="alpha"):
        verify_export(model, folder, t.probe)


def test_weights_of_another_training_are_refused(model: Model, tmp_path: Path) -> None:
    t = trained(model, 0.05)
    other = {name: -values if "lora_B" in name else values for name, values in t.state.items()}
    with pytest.raises(ExportError, match="differ from the trained model's output"):
        export(replace(t, state=other), tmp_path / "adapter")


def test_a_whole_denoiser_goes_round(model: Model, tmp_path: Path) -> None:
    t, folder = trained(model, 0.01, lora=None), tmp_path / "adapter"
    export(t, folder, parameters="full")
    part = family(model).denoiser
    assert sorted(path.name for path in folder.iterdir()) == sorted(["README.md", part])
    # As the card tells a user to do it.
    usage = re.findall(r"^    (\w+ = diffusers\.\w+\.from_pretrained.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert len(usage) == 2
    names: dict[str, Any] = {"diffusers": diffusers, "FOLDER": folder}
    exec("\n".join(usage), names)
    ours = (family(model).load_denoiser(model, folder), family(model).load_pipeline(model, folder).components[part])
    for denoiser in (*ours, names["pipeline"].components[part]):
        output = probe_output(family(model), denoiser, t.probe.x_t, t.probe.timestep, t.probe.conditioning)
        torch.testing.assert_close(output, t.probe.output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parameters", ["lora", "full"])
def test_an_evaluation_is_one_section_of_the_card_and_touches_no_other_line(
    model: Model, parameters: Literal["lora", "full"], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    export(trained(model, 0.02, lora=LORA if parameters == "lora" else None), folder, parameters=parameters)
    card, before = folder / "README.md", (folder / "README.md").read_text()
    add_evaluation(folder, "## Evaluation\n\nfirst\n")
    assert card.read_text().startswith(before) and "first" in card.read_text()
    card.write_text(card.read_text().replace("| objective |", "| the objective |") + "A note of the user's.\n")
    first = card.read_text()
    add_evaluation(folder, "## Evaluation\n\nsecond\n")
    assert card.read_text() == first.replace("first", "second")
    add_evaluation(folder, "## Evaluation\n\nsecond\n")
    assert card.read_text() == first.replace("first", "second")
    card.unlink()
    add_evaluation(folder, "## Evaluation\n")
    assert not card.exists()


def test_an_adapter_trained_in_bfloat16_goes_round(model: Model, tmp_path: Path) -> None:
    export(trained(model.model_copy(update={"dtype": "bfloat16"}), 0.05), tmp_path / "adapter")


def test_the_card_names_the_bases_licence_and_how_to_load(model: Model, tmp_path: Path) -> None:
    text = card_text(model, {"omega_win": "2.0"})
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == model.base and "license" not in head and "lora" in head["tags"]
    assert "| omega_win | 2.0 |" in text and "not stated where it was loaded from" in text and "load_lora_weights" in text
    pinned = card_text(model.model_copy(update={"base": "some/base", "revision": "abc"}), {})
    assert f"diffusers.{family(model).pipeline}.from_pretrained('some/base', revision='abc')" in pinned
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: artists-only\n---\n# A base\n")
    stated = card_text(model.model_copy(update={"base": str(tmp_path)}), {}, "full")
    assert yaml.safe_load(stated.split("---")[1])["license_name"] == "artists-only" and "The base's: artists-only." in stated
    assert "from_pretrained(FOLDER" in stated
    base, licence = next(iter(family(model).licences.items()))
    assert base_licence(model.model_copy(update={"base": base})) == licence
    assert base_licence(model.model_copy(update={"base": "somebody/some-model"})) is None

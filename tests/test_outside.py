"""A package outside of `cpo_ray` brings one of everything that can be added, and the jobs use it as they use their own.

The jobs are started as by a user, who has the package on PYTHONPATH, and name it by import path in their configuration files.
A sweep over the settings of the outside objective is in sweep/test_sweep.py.
"""

from __future__ import annotations

import json
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image

from cpo_ray.config import Lora, Model
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models import family
from cpo_ray.models.tiny import Widths

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
TREE = ROOT / "hierarchy" / "painting_toy.yaml"
FAMILY, PULL = "support.outside.family:FAMILY", "support.outside.objective:PULL"
ANNOTATION = """
[pictures]
path = "{folder}/pictures"

[annotation]
hierarchy = "{tree}"
answers = "{folder}/answers"
output = "{folder}/data"
format = "png"
cpus_per_actor = 0.5

[annotation.back_end]
kind = "support.outside.back_end:Praise"
most = 1
"""
MAIN = """
[run]
name = "main"
output = "{folder}"

[model]
family = "support.outside.family:FAMILY"
base = "{folder}/base"
resolution = 32

[domain]
use = "support.outside.domain:Photographs"
dark = 255                # everything but white is too dark

[data]
folder = "{folder}/data"
hierarchy = "{tree}"

[expert]
adapter = "{folder}/expert"

[expert.lora]
rank = 2
alpha = 2.0

[expert.optimization]
steps = 2

[targets]
folder = "{folder}/targets"
shard_size = 4
draws = 2
min_actors = 1
max_actors = 1
cpus_per_actor = 0.4

[preference.objective]
name = "support.outside.objective:PULL"
omega_win = 1.5
strength = 3.0

[preference.lora]
rank = 2
alpha = 2.0

[preference.optimization]
steps = 3
global_batch = 4
learning_rate = 1e-2
warmup_steps = 0
workers = 1
cpus_per_worker = 0.85

[evaluation]
scorers = ["negatives", "support.outside.scorer:Brightness"]
pictures = 4
inference_steps = 2
batch = 4
actors = 1
cpus_per_actor = 0.1
samples = 0

[tracking]
experiment = "outside"
"""


def start(script: str, file: Path, text: str, *overrides: str) -> str:
    """Write a configuration, run the job with it, and return what it prints."""
    file.write_text(text.format(folder=file.parent, tree=TREE))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [script, "--config", str(file), *overrides])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 0, said.getvalue()
    return said.getvalue()


def bring_pictures_and_models(folder: Path) -> None:
    """Twelve grey pictures with their prompts, and a small base of the outside family with an adapter of random weights."""
    (folder / "pictures").mkdir()
    lines = [{"file_name": f"{grey}.png", "prompt": f"a wall of grey {grey}"} for grey in range(60, 180, 10)]
    for number, line in enumerate(lines):
        Image.fromarray(np.full((40, 40, 3), 60 + 10 * number, np.uint8)).save(folder / "pictures" / line["file_name"])
    (folder / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    poles = [pole.phrase for attribute in load_hierarchy(TREE).attributes.values() for pole in attribute.poles.values()]
    model = Model(family=FAMILY, base=str(folder / "base"), resolution=32)
    found = family(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = found.tiny(Widths(denoiser=(32,), text=16, text_tokens=64, latent=4))
        found.random_pipeline(small, [*(line["prompt"] for line in lines), *poles]).save_pretrained(folder / "base")
        denoiser = found.load_denoiser(model)
        for name in found.add_lora(denoiser, Lora(rank=2, alpha=2.0), seed=1):
            torch.nn.init.normal_(denoiser.get_parameter(name), std=0.05)
    found.save_adapter(denoiser, None, folder / "expert")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """Pictures, labelled by the outside back end, on which the main job has trained the outside family."""
    folder = tmp_path_factory.mktemp("outside")
    bring_pictures_and_models(folder)
    assert start("jobs/annotate.py", folder / "annotation.toml", ANNOTATION).startswith("12 pictures annotated, 0 set aside\n")
    start("jobs/train_cpo.py", folder / "main.toml", MAIN)
    return folder


def mlflow_runs(folder: Path) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("outside")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_training_reads_what_the_outside_back_end_found(folder: Path) -> None:
    dataset = AnnotatedDataset.open(folder / "data")
    labels = [dataset.labels(name) for name in dataset.ids]
    first = ("edge.clarity", "brush.ground", "light.modelling", "color.palette", "composition.central", "shape.completeness")
    assert len(labels) == 12 and {(one.positive_ids, one.negative_ids) for one in labels} == {(first, ())}
    curve = [json.loads(line) for line in (folder / "main" / "pull" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [0, 1, 2]
    assert curve[0]["distance_to_reference"] < 1e-9 < curve[2]["distance_to_reference"] and "lose" not in curve[0]
    card = (folder / "main" / "pull" / "adapter" / "README.md").read_text()
    assert "| objective | pull |" in card and "| strength | 3.0 |" in card


def test_the_table_and_the_report_show_what_outside_scorer_and_domain_say(folder: Path) -> None:
    evaluation = folder / "main" / "evaluation"
    models: dict[str, Any] = json.loads((evaluation / "result.json").read_text())["models"]
    assert set(models) == {"base", "expert, told what is good", "pull"}
    for model in models.values():
        assert model["negatives"]["mean"] == 1 and 0 < model["brightness"]["mean"] < 1
        assert model["labels"] == [{"positive_ids": [], "negative_ids": ["light.contrast"]}] * 4
    head, _, *rows = (evaluation / "table.txt").read_text().splitlines()
    assert "#A_neg" in head and "brightness" in head
    assert rows[-1].startswith("pull") and f" {models['pull']['brightness']['mean']:.3f} [" in rows[-1]
    page = (evaluation / "report.html").read_text()
    for shown in ("mean brightness of a picture", f"{models['pull']['brightness']['mean']:.3f}", FAMILY, PULL, "dark = 255"):
        assert shown in page, shown


def test_mlflow_has_them_on_the_run_of_the_training(folder: Path) -> None:
    runs = mlflow_runs(folder)
    pull, main = runs["pull"], runs["main"]
    assert pull.data.tags["mlflow.parentRunId"] == main.info.run_id
    assert "pull, omega_win 1.5, strength 3: 3 steps" in pull.data.tags["mlflow.note.content"]
    measured = {key for key in pull.data.metrics if key.startswith(("negatives", "brightness"))}
    intervals = {f"{name}{end}" for name in ("negatives", "brightness") for end in ("", ".low", ".high")}
    changes = {f"{name}.change{end}" for name in ("negatives", "brightness") for end in ("", ".low", ".high")}
    assert measured == intervals | changes and pull.data.metrics["negatives"] == 1
    assert {"loss", "distance_to_reference"} <= pull.data.metrics.keys()
    told = {"preference.objective.strength": "3.0", "model.family": FAMILY, "domain.dark": "255"}
    assert told.items() <= pull.data.params.items()

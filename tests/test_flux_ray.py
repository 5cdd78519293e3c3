"""The whole method on a tiny FLUX of the real architecture, from pictures to the report; only the configuration differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.main_job import SHORT, TOY

from cpo_ray import pipeline
from cpo_ray.config import load
from cpo_ray.models import family
from cpo_ray.targets.expert import ExpertSpec
from cpo_ray.training.artifacts.ledger import read_ledger


@pytest.mark.ray
@pytest.mark.slow
def test_flux_from_pictures_to_the_report(
    tmp_path: Path, flux_expert_spec: ExpertSpec, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {
        "run.output": tmp_path,
        "run.name": "flux",
        "model.family": "flux",
        "model.base": flux_expert_spec.model.base,
        "expert.adapter": flux_expert_spec.adapter,  # stage 1 of a FLUX is in test_training_buckets and test_presets
        "data.folder": flux_expert_spec.dataset,
        "domain.use": "none",
        "domain.pictures": 0,
        "data.hierarchy": flux_expert_spec.hierarchy,
        "data.pictures.buckets": "aspect",
        "data.pictures.multiple": 8,
        "data.pictures.together": 2,
        "data.pictures.crop": "random",
        "targets.folder": tmp_path / "targets",
        "targets.shard_size": 4,
        "preference.lora.targets": '["to_q", "to_k", "to_v", "to_out.0"]',
        "preference.optimization.gradient_checkpointing": "true",
        "preference.lora.rank": 8,
        "preference.lora.alpha": 0.8,
        "evaluation.pictures": 4,
        "evaluation.batch": 2,
        "evaluation.samples": 2,
    }
    config = load(TOY, [*SHORT, *(f"{key}={value}" for key, value in overrides.items())])
    pipeline.train_cpo(config)

    run = tmp_path / "flux"
    curve = [json.loads(line) for line in (run / "cpo_s" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [0, 1, 2, 3, 4]
    assert curve[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "a model equal to the reference has a loss of ln 2"
    assert curve[0]["distance_to_reference"] < 1e-11 < curve[-1]["distance_to_reference"]
    # Five steps are twenty pairs. One of the twelve pictures is no square: the third time that it comes, it is alone in its pair.
    assert "in 2 sizes, 11 of them at 64 x 64" in capsys.readouterr().out
    trained, wide = read_ledger(run / "cpo_s"), "picture-3"
    assert len(trained) == 5 * 8 - 1 and sum(item.sample_id == wide for _, item in trained) == 3
    shards = [load_file(shard) for shard in (tmp_path / "targets").rglob("*.safetensors")]
    assert {tuple(shard["x_t"].shape[1:]) for shard in shards} == {(8, 16, 16), (8, 14, 18)}
    lengths = {shard["text.prompt_embeds"].shape[1] for shard in shards}
    assert max(lengths) < 40 and len(lengths) > 1, "texts are stored at their own length, not at T5's 512"

    adapter = run / "cpo_s" / "adapter"
    assert sorted(path.name for path in (adapter / "formats").iterdir()) == ["comfyui.safetensors", "kohya.safetensors"]
    kohya = load_file(adapter / "formats" / "kohya.safetensors")
    assert kohya["lora_unet_double_blocks_0_img_attn_qkv.alpha"] == pytest.approx(2.4)  # three times 0.8
    merged, base = family(config.model).load_denoiser(config.model, adapter), family(config.model).load_denoiser(config.model)
    changed = [n for n, p in merged.named_parameters() if not torch.equal(p, base.get_parameter(n))]
    assert changed and all(n.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")) for n in changed)
    page = (run / "evaluation" / "report.html").read_text()
    assert "data:image/png;base64," in page

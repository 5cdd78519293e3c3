"""What the stages of a run need of the disk, known before anything is drawn or computed."""

from __future__ import annotations

from pathlib import Path

from cpo_ray.config import load
from cpo_ray.preflight.disk import stage_needs
from cpo_ray.sweep.items import sweep_items

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy.toml"


def test_what_a_run_needs_is_known_before_its_pictures_are_drawn(tmp_path: Path) -> None:
    steps = ["expert.optimization.steps=24", "preference.optimization.steps=20"]
    places = [f"data.folder={tmp_path / 'data'}", f"run.output={tmp_path}", f"targets.folder={tmp_path / 'targets'}"]
    stage_1, stage_2 = stage_needs(load(TOY, [*steps, *places]))
    assert (stage_1.samples, stage_1.shards, stage_1.there) == (24 * 32, 12, None)
    assert (stage_2.samples, stage_2.shards, stage_2.there) == (20 * 32, 10, None)
    # Of one latent, stage 1 stores two float16 tensors, stage 2 six of them and one of float32.
    assert stage_1.bytes is not None and stage_2.bytes is not None
    latents = 8 * 16 * 16
    assert stage_2.bytes / stage_2.samples - stage_1.bytes / stage_1.samples == 12 * latents
    sweep = load(TOY.with_name("toy_sweep.toml"), [*steps, *places, "sweep.held_out=16"])
    assert stage_needs(sweep, lambda pictures: sweep_items(sweep, pictures)[0])[1].samples == 20 * 32 + 16

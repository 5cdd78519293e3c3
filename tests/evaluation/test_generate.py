from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpo_ray.config import Evaluation, Model
from cpo_ray.evaluation import generate
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.generate import GenerationJob, Task, generate_batch, generate_into, generate_many
from cpo_ray.evaluation.pictures import StoredPictures
from cpo_ray.models.sdxl import FAMILY
from cpo_ray.models.tiny import Widths

PROMPTS = ("red circle over sea", "blue square on grey wall", "yellow triangle over field")
SEEDS = (11, 12, 13)
MODEL = Model(family="sdxl", base="x", resolution=32)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = FAMILY.random_pipeline(FAMILY.tiny(Widths(vae=(16, 32), latent=4)), PROMPTS)
    made.set_progress_bar_config(disable=True)
    return made


def job(model: Model = MODEL, negative_prompts: tuple[str, ...] = ("",) * 3, batch: int = 2, **changes: Any) -> GenerationJob:
    made = GenerationJob(model, None, PROMPTS, SEEDS, negative_prompts, inference_steps=2, guidance_scale=3.0, batch=batch)
    return replace(made, **changes)


def test_a_picture_is_the_same_in_any_batch(pipeline: Any) -> None:
    negative = job(negative_prompts=("dark", "dull", "flat"))
    together = generate_batch(pipeline, negative, (0, 1, 2))
    for i, a in enumerate(together):
        (b,) = generate_batch(pipeline, negative, (i,))
        assert a.shape == (32, 32, 3) and a.dtype == np.uint8
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert np.abs(together[0].astype(int) - together[1].astype(int)).mean() > 5


def test_the_seed_alone_decides_the_noise(pipeline: Any) -> None:
    torch.manual_seed(1)
    first, other = generate_batch(pipeline, job(prompts=PROMPTS[:1] * 3), (0, 1))
    torch.manual_seed(2)
    (again,) = generate_batch(pipeline, job(), (0,))
    assert np.abs(first.astype(int) - again.astype(int)).max() <= 1
    assert np.abs(first.astype(int) - other.astype(int)).mean() > 5


def test_negative_prompts_and_resolution_take_effect(pipeline: Any) -> None:
    strong = job(guidance_scale=8.0)
    (plain,) = generate_batch(pipeline, strong, (0,))
    (negative,) = generate_batch(pipeline, replace(strong, negative_prompts=("blue square",) * 3), (0,))
    assert not np.array_equal(plain, negative)
    larger = job(MODEL.model_copy(update={"resolution": 48}), inference_steps=1, guidance_scale=1.0)
    assert generate_batch(pipeline, larger, (0,))[0].shape == (48, 48, 3)


def test_a_batch_of_empty_and_other_negative_prompts_is_refused(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="mixes empty and other"):
        generate_batch(pipeline, job(negative_prompts=("", "dull", "")), (0, 1))


def test_a_job_keeps_pictures_without_negative_prompt_apart() -> None:
    mixed = job(negative_prompts=("", "dull", ""), batch=2)
    assert list(mixed.batches()) == [(0, 2), (1,)]
    with pytest.raises(ValueError, match="3 prompts, 2 negative prompts"):
        job(negative_prompts=("", "dull"))


def test_pictures_are_drawn_once_and_kept_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "a.safetensors").write_bytes(b"1")
    made = [np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8) for i in range(3)]
    asked: list[tuple[int, ...]] = []
    told: list[tuple[int, int]] = []

    def drawing(jobs: object, tasks: Sequence[Task], settings: object) -> Iterator[tuple[Task, list[Picture]]]:
        for name, indices in tasks:
            asked.append(indices)
            yield (name, indices), [made[i] for i in indices]

    monkeypatch.setattr(generate, "_drawn", drawing)

    def drawn(of: GenerationJob) -> StoredPictures:
        asked.clear()
        told.clear()
        return generate_into({"m": tmp_path / "m"}, {"m": of}, Evaluation(), lambda *now: told.append(now))["m"]

    first = replace(job(batch=2), adapter=tmp_path / "adapter")
    pictures = drawn(first)
    assert asked == [(0, 1), (2,)] and told == [(2, 3), (3, 3)] and len(pictures) == 3
    assert all((a == b).all() for a, b in zip(pictures, made, strict=True)) and (pictures[1:][1] == made[2]).all()
    drawn(first)
    assert asked == []
    (tmp_path / "m" / "000002.png").unlink()  # as after a kill
    drawn(first)
    assert asked == [(2,)] and told == [(3, 3)]
    drawn(replace(first, seeds=(7, 8, 9)))
    assert asked == [(0, 1), (2,)]
    (tmp_path / "adapter" / "a.safetensors").write_bytes(b"22")
    drawn(replace(first, seeds=(7, 8, 9)))
    assert asked == [(0, 1), (2,)]  # other weights draw other pictures


@pytest.mark.ray
@pytest.mark.slow
def test_the_pool_draws_what_one_process_draws(pipeline: Any, tmp_path: Path, ray_session: object) -> None:
    pipeline.save_pretrained(tmp_path)
    jobs = {"plain": job(Model(family="sdxl", base=str(tmp_path), resolution=32))}
    jobs["negative"] = job(jobs["plain"].model, ("", "dull", ""))
    settings = Evaluation(actors=2, cpus_per_actor=0.5)
    drawn = generate_many(jobs, settings)
    expected = generate_batch(pipeline, jobs["plain"], (0, 1, 2))
    for name, same in (("plain", [True, True, True]), ("negative", [True, False, True])):
        differences = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in zip(drawn[name], expected, strict=True)]
        assert [bool(d <= 1) for d in differences] == same

"""Draw pictures for fixed prompts and fixed noise with a pool of Ray actors.

The noise of a picture comes from its own seed, and batches are fixed before the work is handed out. A picture therefore depends
neither on the number of actors nor on which of them drew it.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray.util import ActorPool

from cpo_ray.config import Config, Evaluation, Model
from cpo_ray.core.files import read_json, write_bytes, write_json
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.pictures import StoredPictures, in_files
from cpo_ray.models import family
from cpo_ray.models.bases.source import anywhere
from cpo_ray.targets.store import content_digest, text_digest

#: The name of a job and the places of pictures that are drawn together.
Task = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class GenerationJob:
    """All pictures of one model. Picture i has prompts[i], negative_prompts[i] and the noise of seeds[i]."""

    model: Model
    adapter: Path | None
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompts: tuple[str, ...]
    """The empty text means the pipeline's own null condition."""
    inference_steps: int
    guidance_scale: float
    batch: int

    def __post_init__(self) -> None:
        lengths = {len(self.prompts), len(self.seeds), len(self.negative_prompts)}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                f"a generation job has {len(self.prompts)} prompts, {len(self.negative_prompts)} negative prompts and "
                f"{len(self.seeds)} seeds; give one of each per picture, and at least one picture"
            )

    def batches(self) -> Iterator[tuple[int, ...]]:
        """Return the indices of the pictures drawn together. Pictures without a negative prompt form batches of their own."""
        for has_negative in (False, True):
            group = [i for i, text in enumerate(self.negative_prompts) if bool(text) == has_negative]
            for start in range(0, len(group), self.batch):
                yield tuple(group[start : start + self.batch])


def generation_job(
    config: Config, adapter: Path | None, prompts: Sequence[str], seeds: Sequence[int], negative: Sequence[str] = ()
) -> GenerationJob:
    """Return the job for pictures drawn as the configuration's evaluation says."""
    settings = config.evaluation
    return GenerationJob(
        model=anywhere(config.model),
        adapter=adapter,
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        negative_prompts=tuple(negative) or ("",) * len(prompts),
        inference_steps=settings.inference_steps,
        guidance_scale=settings.guidance_scale,
        batch=settings.batch,
    )


def generate_batch(pipeline: Any, job: GenerationJob, indices: Sequence[int]) -> list[Picture]:
    """Return the job's pictures with these indices, (H, W, 3) uint8, drawn together by a diffusers pipeline.

    Raises ValueError if only some of their negative prompts are empty, or a picture is NaN.
    """
    # Many pipelines use zeros, not the encoded empty text, as null condition. Only `None` selects it, for the whole batch.
    negative = [job.negative_prompts[i] for i in indices] if any(job.negative_prompts[i] for i in indices) else None
    if negative is not None and not all(negative):
        raise ValueError("a batch mixes empty and other negative prompts; make the two kinds in batches of their own")
    seeds = [job.seeds[i] for i in indices]
    with torch.inference_mode():
        pictures = pipeline(
            prompt=[job.prompts[i] for i in indices],
            negative_prompt=negative,
            num_inference_steps=job.inference_steps,
            guidance_scale=job.guidance_scale,
            height=job.model.resolution,
            width=job.model.resolution,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
    if not np.isfinite(pictures).all():
        raise ValueError(f"the pipeline drew NaN for seeds {seeds[:3]} …; use weights or a precision (model.dtype) that hold")
    return list((pictures * 255).round().astype(np.uint8))


def generate_many(jobs: Mapping[str, GenerationJob], settings: Evaluation) -> dict[str, list[Picture]]:
    """Return the pictures of several models, drawn in one pool whose actors start, and import their libraries, once."""
    tasks = [(name, indices) for name, job in jobs.items() for indices in job.batches()]
    pictures: dict[str, dict[int, Picture]] = {name: {} for name in jobs}
    for (name, indices), batch in _drawn(jobs, tasks, settings):
        pictures[name].update(zip(indices, batch, strict=True))
    return {name: [found[i] for i in range(len(found))] for name, found in pictures.items()}


def generate_into(
    folders: Mapping[str, Path],
    jobs: Mapping[str, GenerationJob],
    settings: Evaluation,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, StoredPictures]:
    """Draw the pictures of several models in one pool into a folder each, without those that the same job has left there.

    A batch is written before the next one is taken, so nobody holds all pictures. A folder with another job's pictures is
    emptied. `on_progress` gets (pictures there, all pictures) after each batch.
    """
    files = {name: [folders[name] / f"{i:06}.png" for i in range(len(job.prompts))] for name, job in jobs.items()}
    for name, job in jobs.items():
        _claim(folders[name], job)
    every = [(name, indices) for name, job in jobs.items() for indices in job.batches()]
    tasks = [(name, indices) for name, indices in every if not all(files[name][i].exists() for i in indices)]
    total, left = sum(map(len, files.values())), sum(len(indices) for _, indices in tasks)
    for (name, indices), batch in _drawn(jobs, tasks, settings):
        for i, picture in zip(indices, batch, strict=True):
            write_bytes(files[name][i], _png(picture))
        left -= len(indices)
        if on_progress is not None:
            on_progress(total - left, total)
    return {name: in_files(found) for name, found in files.items()}


def _drawn(
    jobs: Mapping[str, GenerationJob], tasks: Sequence[Task], settings: Evaluation
) -> Iterator[tuple[Task, list[Picture]]]:
    """Yield each batch of pictures as it is done. Every actor works on one at a time."""
    # A restarted actor loads what its next task names, so a lost node costs one batch and no picture.
    remote = ray.remote(PictureActor).options(
        num_cpus=settings.cpus_per_actor, num_gpus=settings.gpus_per_actor, max_restarts=2, max_task_retries=2
    )
    actors = [remote.remote() for _ in range(min(settings.actors, len(tasks)))]
    try:
        yield from ActorPool(actors).map_unordered(lambda actor, task: actor.draw.remote(jobs[task[0]], task), tasks)
    finally:
        for actor in actors:
            ray.kill(actor)


def _claim(folder: Path, job: GenerationJob) -> None:
    """Empty a folder unless its pictures are those of the same job, of the same weights and libraries."""
    local = Path(job.model.base).expanduser()
    described = {
        **asdict(job),
        "model": job.model.model_dump(mode="json", exclude={"base"}),
        "base": content_digest(local) if local.is_dir() else job.model.base,
        "adapter": None if job.adapter is None else content_digest(job.adapter),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
    record, digest = folder / "job.json", text_digest(json.dumps(described, sort_keys=True))
    if not record.exists() or read_json(record) != digest:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(record, digest)


def _png(picture: Picture) -> bytes:
    """Return the picture as it is; a low compression takes a fraction of the time and a third more space."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def grid(pictures: Sequence[Picture], columns: int) -> Picture:
    """Put pictures of one size side by side, (rows·H, columns·W, 3). An incomplete last row is filled with white."""
    rows = [list(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    rows[-1] += [np.full_like(pictures[0], 255)] * (columns - len(rows[-1]))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


class PictureActor:
    """Holds the pipeline of its last task, since tasks of one model follow each other."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # the pool's actors provide the parallelism
        self._loaded: tuple[Model, Path | None] | None = None
        self._held: Any = None

    def draw(self, job: GenerationJob, task: Task) -> tuple[Task, list[Picture]]:
        """Draw one batch of a job; the task comes back with its pictures, since batches end in any order."""
        return task, generate_batch(self._pipeline(job), job, task[1])

    def draw_all(self, job: GenerationJob) -> list[Picture]:
        """Draw all pictures of a job here."""
        made = {
            i: picture
            for indices in job.batches()
            for i, picture in zip(indices, generate_batch(self._pipeline(job), job, indices), strict=True)
        }
        return [made[i] for i in range(len(made))]

    def _pipeline(self, job: GenerationJob) -> Any:
        if self._loaded != (job.model, job.adapter):
            self._loaded, self._held = None, None  # two large pipelines may not fit into memory together
            self._held = family(job.model).load_pipeline(job.model, job.adapter)
            self._held.to("cuda" if torch.cuda.is_available() else "cpu")
            self._held.set_progress_bar_config(disable=True)
            self._loaded = (job.model, job.adapter)
        return self._held

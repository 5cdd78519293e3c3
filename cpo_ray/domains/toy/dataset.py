"""An annotated data set of the embedded domain: the renderer draws it, the measuring agent labels it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cpo_ray.core.files import read_json, write_bytes, write_json, write_log
from cpo_ray.core.prompts import Labels
from cpo_ray.data.shards import AnnotatedDataset, DataError, stage_shards, staged
from cpo_ray.data.validate import Origin, annotated_row
from cpo_ray.domains.toy.agent import measure
from cpo_ray.domains.toy.render import Image as Picture
from cpo_ray.domains.toy.render import contents_of, render, sample_scene
from cpo_ray.hierarchy import Hierarchy

RECORD = "dataset.json"


def make_dataset(folder: Path, count: int, seed: int, tree: Hierarchy) -> AnnotatedDataset:
    """Draw `count` pictures of the training contents as annotated shards; at once where the folder already holds just these.

    The labels are read back from the pixels, as those of a user's pictures would be: the renderer's own are never seen.  A larger
    count with the same seed begins with the same pictures.  Raises DataError where the folder holds another data set.
    """
    record = {"count": count, "seed": seed, "hierarchy_hash": tree.content_hash}
    path = folder / RECORD
    if path.exists():
        if (found := read_json(path)) != record:
            raise DataError(f"{folder} holds another toy data set ({found}); delete it or choose another folder")
        return AnnotatedDataset.open(folder)
    with staged(folder) as stage:
        # The record comes first, and so takes its name last: where it stands, the shards do.
        write_json(stage(RECORD), record)
        stage_shards(_rows(count, seed, tree), stage)
    return AnnotatedDataset.open(folder)


def draw_pictures(folder: Path, count: int, seed: int) -> None:
    """Write the same pictures as PNG files with a metadata.jsonl of their prompts, as a user's own would lie there."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, contents = np.random.default_rng(seed), contents_of("train")
    entries = []
    for number in range(count):
        scene = sample_scene(generator, negative_probability=0.5, contents=contents)
        name = f"{scene.content.prompt.replace(' ', '-')}-{number:05d}.png"
        write_bytes(folder / name, _png(render(scene)))
        entries.append({"file_name": name, "prompt": scene.content.prompt})
    # It comes last: where it stands, the pictures do.
    write_log(folder / "metadata.jsonl", entries)


def _rows(count: int, seed: int, tree: Hierarchy) -> Iterator[dict[str, Any]]:
    generator, contents = np.random.default_rng(seed), contents_of("train")
    for number in range(count):
        scene = sample_scene(generator, negative_probability=0.5, contents=contents)
        prompt = scene.content.prompt
        picture = render(scene)
        seen = measure(picture, prompt)
        yield annotated_row(
            sample_id=f"{prompt.replace(' ', '-')}-{number:05d}",
            image=_png(picture),
            labels=Labels(prompt, seen.positive_ids, seen.negative_ids),
            origin=Origin(f"measuring agent on toy render {number} of seed {seed}"),
            tree=tree,
        )


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", compress_level=1)
    return buffer.getvalue()

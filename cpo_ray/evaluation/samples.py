"""Pictures during a training: the same prompts and noise at every checkpoint, to show what the loss does not.

The trainer holds nothing that can draw. It leaves its weights as snapshots. The driver watches for them, draws with each in a Ray
task, shows the grid in MLflow and removes the snapshot.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import ray
from PIL import Image
from ray.exceptions import RayError

from cpo_ray.config import Config, Evaluation
from cpo_ray.core.prompts import condition_texts
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.gate import LONG
from cpo_ray.evaluation.generate import GenerationJob, PictureActor, generation_job, grid
from cpo_ray.evaluation.rounds import samples_round
from cpo_ray.hierarchy import Hierarchy
from cpo_ray.tracking import RunTracker

LOOK_EVERY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class SampleWatch:
    """Draws with every snapshot that appears in a folder, until the block has ended and the last one is drawn.

    The grids lie in `pictures`, one PNG per snapshot, named like it. A failed drawing is a warning and never ends a training.
    """

    def __init__(self, snapshots: Path, pictures: Path, job: GenerationJob, settings: Evaluation, tracker: RunTracker) -> None:
        self._snapshots, self._pictures, self._job, self._tracker = snapshots, pictures, job, tracker
        self._draw = ray.remote(_draw).options(num_cpus=settings.cpus_per_sample, num_gpus=settings.gpus_per_actor, max_retries=1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="samples", daemon=True)

    def __enter__(self) -> SampleWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if error is None:
            self._thread.join()

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(LOOK_EVERY_SECONDS)  # look once more after the end
            for snapshot in sorted(self._snapshots.glob("step-*")):
                self._show(snapshot)

    def _show(self, snapshot: Path) -> None:
        file = self._pictures / f"{snapshot.name}.png"
        try:
            made = ray.get(self._draw.remote(replace(self._job, adapter=snapshot)))
        except RayError as error:
            logger.warning("no sample pictures of %s (%s); training goes on", snapshot.name, str(error).strip().splitlines()[-1])
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grid(made, 4)).save(file)
            self._tracker.log_pictures("samples", file, int(snapshot.name.removeprefix("step-")))
        shutil.rmtree(snapshot)


@contextmanager
def sample_watch(
    config: Config, dataset: AnnotatedDataset, tree: Hierarchy, snapshots: Path, tracker: RunTracker, attributes: bool
) -> Iterator[None]:
    """Draw with the snapshots of a training, for prompts of validation pictures. The grids go to `samples/` beside them.

    With `attributes` the prompts name the pictures' good and bad attributes, as the expert is trained for. Does nothing if
    `evaluation.samples` is 0.
    """
    if not config.evaluation.samples:
        yield
        return
    asked = samples_round(config, dataset)
    texts = [condition_texts(request, tree, lambda _: 0, LONG)[0] for request in asked.requests]
    prompts = [text.all for text in texts] if attributes else asked.prompts
    job = generation_job(config, None, prompts, asked.seeds)
    with SampleWatch(snapshots, snapshots.with_name("samples"), job, config.evaluation, tracker):
        yield


def _draw(job: GenerationJob) -> list[Picture]:
    """Draw in a task, not an actor, since it takes its CPUs or GPU only for a moment."""
    return PictureActor().draw_all(job)

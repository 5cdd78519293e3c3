"""The whole annotation on Ray Data: list → read and decode (tasks) → ask (actor pool) → annotated shards.

Only names and outcomes travel between these steps. Answers are in the answer files as soon as they arrive, so a run can stop at
any point, and the next one continues from there.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError, RayTaskError
from ray.util.annotations import RayDeprecationWarning

from cpo_ray.annotation.asking.agent import Agent
from cpo_ray.annotation.asking.annotator import Effort, Outcome
from cpo_ray.annotation.back_ends.base import BackEndUnusable
from cpo_ray.annotation.listing import Listing, PictureEntry, list_pictures
from cpo_ray.annotation.pictures import Picture, picture_digest, prepare
from cpo_ray.annotation.report import AnnotationReport
from cpo_ray.annotation.results import check_output, write_results
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.core.files import DiskFullError
from cpo_ray.data.picture import PictureError
from cpo_ray.data.sources.extent import Extent, read
from cpo_ray.evaluation.domain import open_domain
from cpo_ray.hierarchy import load_hierarchy

Progress = Callable[[AnnotationReport], None]

BLOCK = 16
#: Number of blocks that a driver tracks easily. More pictures make larger blocks.
MOST_BLOCKS = 4096
#: Blocks in work on one actor. While it waits for the last answers of one block, the next block's questions are under way.
BLOCKS_PER_ACTOR = 4
_PICTURES = pa.schema(
    [
        pa.field("unusable", pa.string()),
        *(pa.field(name, pa.list_(pa.string())) for name in ("id", "prompt", "digest", "media_type")),
        pa.field("seen", pa.list_(pa.large_binary())),
        *(pa.field(name, pa.list_(pa.list_(pa.int32(), 2))) for name in ("size", "seen_size")),
    ]
)
_COLUMNS = ("id", "prompt", "digest", "seen", "media_type", "size", "seen_size")


class AnnotationError(RuntimeError):
    """The run cannot continue; one sentence says why. All answers are kept."""


def annotate(
    config: AnnotationConfig,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    on_progress: Progress | None = None,
) -> AnnotationReport:
    """Annotate the first `limit` pictures, or all, and write `annotation.output` anew; needs a Ray that is connected.

    A dry run asks and writes nothing: the report holds what a run would ask, the tokens estimated.
    Raises AnnotationError, DataError and HierarchyError.
    """
    started = time.monotonic()
    tree = load_hierarchy(config.annotation.hierarchy)
    check_output(config.annotation.output, config.pictures.path)
    listing = listed(config, limit)
    unlisted = Counter(one.kind for one in listing.set_aside)
    report = AnnotationReport(config, len(listing.entries), dry_run, unlisted, listing.told)
    outcomes: dict[str, Outcome] = {}
    in_vain = 0
    for outcome in _outcomes(_for_workers(config), listing.entries, dry_run, retry_failed):
        outcomes[outcome.id] = outcome
        report.count(outcome)
        if outcome.effort.asked:
            in_vain = in_vain + 1 if outcome.effort.failed == outcome.effort.asked else 0
        report.seconds = time.monotonic() - started
        if on_progress is not None:
            on_progress(report)
        if in_vain >= config.annotation.stop_after and not dry_run:
            raise AnnotationError(
                f"the last {in_vain} pictures got no answer, lastly: {outcome.problem}; when the back end is well again, start "
                "the same command with --retry-failed"
            )
    if not dry_run:
        if not report.annotated:
            raise AnnotationError(_nothing_annotated(config, listing, outcomes))
        write_results(config, tree, listing, outcomes, report)
    report.seconds = time.monotonic() - started
    return report


def _nothing_annotated(config: AnnotationConfig, listing: Listing, outcomes: Mapping[str, Outcome]) -> str:
    """Return why there is no data set, with an example."""
    reasons = [outcome.problem for outcome in outcomes.values()] + [one.reason for one in listing.set_aside]
    place = config.pictures.path
    if not reasons:
        return f"{place} holds no pictures; set pictures.path to a folder, a Parquet file or a tar that does"
    return f"no picture of {place} could be annotated, and {len(reasons)} were set aside; for instance: {reasons[0]}"


def listed(config: AnnotationConfig, limit: int | None) -> Listing:
    """The pictures to annotate; a domain draws its own where there are none."""
    path, drawn = config.pictures.path, config.domain.pictures
    if drawn and not (path / "metadata.jsonl").exists():
        open_domain(config.domain, load_hierarchy(config.annotation.hierarchy)).draw_pictures(path, drawn, seed=0)
    listing = list_pictures(config.pictures)
    listing.entries = listing.entries[:limit]
    return listing


class AnnotatingActor:
    """One member of the pool. Its constructor takes settings only, and opens nothing: raising there would kill the actor, and Ray
    would restart it again and again.
    """

    def __init__(self, config: AnnotationConfig, dry_run: bool, retry_failed: bool) -> None:
        settings = config.annotation
        self._answers, self._dry_run = settings.answers, dry_run
        self._agent = Agent(
            settings,
            load_hierarchy(settings.hierarchy),
            write_prompts=settings.write_prompts,
            retry_failed=retry_failed,
            dry_run=dry_run,
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Annotate one block of pictures and return one row of outcomes. Ray calls it for several blocks at the same time."""
        (row,) = rows.to_pylist()
        outcomes = [Outcome(**unusable) for unusable in json.loads(row["unusable"])]
        pictures = [_picture(fields) for fields in zip(*(row[name] for name in _COLUMNS), strict=True)]
        stop = ""
        try:
            outcomes += self._agent.expect(pictures) if self._dry_run else self._agent.annotate(pictures)
        except BackEndUnusable as error:
            stop = str(error)
        except (OSError, DiskFullError) as error:
            stop = f"an answer cannot be kept in {self._answers}: {error}"
        return pa.table({"stop": [stop], "outcomes": [json.dumps([asdict(outcome) for outcome in outcomes])]})


def prepare_block(rows: pa.Table, config: AnnotationConfig) -> pa.Table:
    """Read and decode the pictures of one row of entries. A file that is not a picture continues as an outcome that says so."""
    listed = json.loads(rows["entries"][0].as_py())
    entries = [PictureEntry(**{**entry, "extent": Extent(**entry["extent"])}) for entry in listed]
    pictures, unusable = [], []
    for entry, data in zip(entries, read(entry.extent for entry in entries), strict=True):
        try:
            if isinstance(data, PictureError):
                raise data
            pictures.append(prepare(entry.id, entry.prompt, data, config.annotation.side, config.annotation.format))
        except PictureError as error:
            digest = picture_digest(data) if isinstance(data, bytes) else ""
            unusable.append(asdict(Outcome(entry.id, digest, kind="unusable picture", problem=str(error))))
    columns = {name: [[getattr(picture, name) for picture in pictures]] for name in _COLUMNS}
    return pa.table({"unusable": [json.dumps(unusable)], **columns}, schema=_PICTURES)


def _outcomes(config: AnnotationConfig, entries: Sequence[PictureEntry], dry_run: bool, retry_failed: bool) -> Iterator[Outcome]:
    """Yield the outcome of each picture as it arrives. Raises AnnotationError."""
    if not entries:
        return
    try:
        for batch in _dataset(config, entries, dry_run, retry_failed).iter_batches(
            batch_size=1, batch_format="pyarrow", prefetch_batches=0
        ):
            for row in batch.to_pylist():
                if row["stop"]:
                    raise AnnotationError(row["stop"])
                for fields in json.loads(row["outcomes"]):
                    yield Outcome(**{**fields, "effort": Effort(**fields["effort"])})
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise AnnotationError(f"a worker of the annotation failed: {cause}") from error


def _dataset(config: AnnotationConfig, entries: Sequence[PictureEntry], dry_run: bool, retry_failed: bool) -> Dataset:
    size = max(BLOCK, -(-len(entries) // MOST_BLOCKS))
    blocks = [entries[start : start + size] for start in range(0, len(entries), size)]
    rows = [{"entries": json.dumps([asdict(entry) for entry in block])} for block in blocks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False
    settings = config.annotation
    prepared = dataset.map_batches(prepare_block, fn_args=(config,), batch_size=1, batch_format="pyarrow", num_cpus=0.5)
    with warnings.catch_warnings():
        # Deprecated since Ray 2.60, which has no other way yet to bound an actor's restarts.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return prepared.map_batches(
            AnnotatingActor,
            fn_constructor_args=(config, dry_run, retry_failed),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=1 if dry_run else settings.actors,  # one actor notices repeated pictures
                max_concurrent_calls_per_actor=BLOCKS_PER_ACTOR,
                max_tasks_in_flight_per_actor=BLOCKS_PER_ACTOR + 1,
                enable_true_multi_threading=True,
            ),
            num_cpus=settings.cpus_per_actor,
            num_gpus=0 if dry_run else settings.gpus_per_actor,
            ray_remote_args_fn=_bounded_retries,
        )


def _bounded_retries() -> dict[str, int]:
    """Bound the retries, or Ray would try a block that kills its actor for ever."""
    return {"max_restarts": 4, "max_task_retries": 1}


def _picture(fields: tuple[Any, ...]) -> Picture:
    sample_id, prompt, digest, seen, media_type, size, seen_size = fields
    return Picture(sample_id, prompt, digest, seen, media_type, tuple(size), tuple(seen_size))


def _for_workers(config: AnnotationConfig) -> AnnotationConfig:
    """Return the settings with absolute paths, since other processes work in another folder."""
    settings = config.annotation
    update = {
        "answers": settings.answers.absolute(),
        "hierarchy": settings.hierarchy.absolute(),
        "back_end": settings.back_end.on_other_machines(),
    }
    return config.model_copy(update={"annotation": settings.model_copy(update=update)})

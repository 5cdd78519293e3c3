"""Turn outcomes into annotated shards: a folder for `data.folder`, replaced as a whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cpo_ray.annotation.asking.annotator import Outcome
from cpo_ray.annotation.asking.questions import PROMPT_VERSION
from cpo_ray.annotation.listing import Listing, PictureEntry
from cpo_ray.annotation.pictures import picture_digest
from cpo_ray.annotation.report import AnnotationReport
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.core.files import Log, write_json, write_text
from cpo_ray.core.prompts import Labels
from cpo_ray.data.importer import stage_quarantine
from cpo_ray.data.picture import PictureError
from cpo_ray.data.shards import SHARDS, DataError, stage_shards, staged
from cpo_ray.data.sources.extent import read
from cpo_ray.data.sources.listed import SetAside
from cpo_ray.data.validate import Origin, RowError, annotated_row
from cpo_ray.hierarchy import Hierarchy

ABOUT = "annotation.json"
CHUNK = 64


def check_output(folder: Path, pictures: Path) -> None:
    """Raise DataError if the folder holds annotated shards that we did not write, or lies among the pictures."""
    if folder.resolve().is_relative_to(pictures.resolve()):
        raise DataError(
            f"annotation.output {folder} lies in pictures.path, where the next run would take it for pictures; move it"
        )
    if any(folder.glob(SHARDS)) and not (folder / ABOUT).exists():
        raise DataError(f"{folder} holds annotated shards of another origin; choose another annotation.output")


def write_results(
    config: AnnotationConfig, tree: Hierarchy, listing: Listing, outcomes: Mapping[str, Outcome], report: AnnotationReport
) -> None:
    """Write shards, the quarantine, the judgements behind the labels, and what they were made with.

    Order and bytes depend on the pictures and the answers alone. An interruption leaves the old folder or none, never half of
    one; the answers are kept elsewhere.
    """
    output = config.annotation.output.absolute()
    fresh, old = (output.with_name(f".{output.name}.{state}") for state in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    set_aside = list(listing.set_aside)
    with staged(fresh) as stage:
        write_json(stage(ABOUT), _about(config, tree))
        with Log(stage("judgements.jsonl")) as judgements:
            stage_shards(_rows(config, tree, listing, outcomes, set_aside, judgements), stage)
        rows = [{"source": s.source, "id": s.id, "reason": s.reason} for s in set_aside]
        stage_quarantine(rows, stage)
        write_text(stage("report.json"), report.to_json())
    if output.exists():
        os.replace(output, old)
    os.replace(fresh, output)
    shutil.rmtree(old, ignore_errors=True)


def _rows(
    config: AnnotationConfig,
    tree: Hierarchy,
    listing: Listing,
    outcomes: Mapping[str, Outcome],
    set_aside: list[SetAside],
    judgements: Log,
) -> Iterator[dict[str, Any]]:
    """Yield the annotated rows in the order of the source. Others go to `set_aside`, and each row writes a line of judgements."""
    identity = config.annotation.identity
    about = {"back_end": identity["back_end"], "model": identity["model"], "prompt_version": PROMPT_VERSION}
    for start in range(0, len(listing.entries), CHUNK):
        good: list[PictureEntry] = []
        for entry in listing.entries[start : start + CHUNK]:
            outcome = outcomes[entry.id]
            if outcome.problem:
                set_aside.append(SetAside(entry.source, entry.id, outcome.kind, outcome.problem))
            else:
                good.append(entry)
        for entry, data in zip(good, read(entry.extent for entry in good), strict=True):
            outcome = outcomes[entry.id]
            try:
                if isinstance(data, PictureError) or picture_digest(data) != outcome.digest:
                    raise PictureError("the file changed while it was annotated; start again")
                labels = Labels(outcome.prompt, tuple(outcome.positive_ids), tuple(outcome.negative_ids))
                size = outcome.width, outcome.height
                provenance = json.dumps({"source": entry.source, **about}, ensure_ascii=False)
                yield annotated_row(entry.id, data, labels, Origin(provenance, entry.split), tree, size)
            except (PictureError, RowError) as error:
                reason = str(error).replace("\n", "; ")
                set_aside.append(SetAside(entry.source, entry.id, "no valid row", reason))
                continue
            judgements.append([{"id": entry.id, "roots": outcome.judgements}])


def _about(config: AnnotationConfig, tree: Hierarchy) -> dict[str, Any]:
    return {
        "hierarchy": f"{tree.name} {tree.version}",
        "hierarchy_hash": tree.content_hash,
        "prompt_version": PROMPT_VERSION,
        **config.annotation.identity,
    }

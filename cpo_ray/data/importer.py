"""Import a folder of pictures: good ones into annotated shards, the others into a readable quarantine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.core.prompts import Labels
from cpo_ray.core.schema import QUARANTINE
from cpo_ray.core.splits import Split
from cpo_ray.data.picture import PictureError
from cpo_ray.data.shards import DataError, Stage, stage_shards, staged
from cpo_ray.data.sources.extent import read
from cpo_ray.data.sources.folder import read_pictures
from cpo_ray.data.sources.listed import Folder, Pictured, told_of_splits
from cpo_ray.data.validate import Origin, Reason, RowError, annotated_row
from cpo_ray.hierarchy import Hierarchy


@dataclass(frozen=True)
class ImportReport:
    """The numbers of pictures kept and set aside. `reasons` counts faults, and one picture can have several.

    `prompts` says which columns and files the prompts and other fields came from. `unlabelled` counts the pictures without
    attributes. `splits` counts the pictures of each published split, and those without one as None.
    """

    kept: int
    set_aside: int
    reasons: Counter[str]
    prompts: str = ""
    unlabelled: int = 0
    splits: Counter[Split | None] = field(default_factory=Counter)

    def summary(self) -> str:
        """Return the counts, one sentence per line."""
        lines = [f"{self.kept} pictures imported, none set aside"]
        if self.set_aside:
            reasons = ", ".join(f"{kind}: {count}" for kind, count in self.reasons.most_common())
            lines = [
                f"{self.kept} pictures imported, {self.set_aside} set aside ({reasons}); quarantine.jsonl says why, row by row"
            ]
        if self.prompts:
            lines.append(self.prompts)
        if told := told_of_splits(self.splits):
            lines.append(told)
        if self.unlabelled:
            lines.append(f"{self.unlabelled} pictures have no attributes; jobs/annotate.py labels them")
        return "\n".join(lines)


def import_folder(folder: Path, output: Path, tree: Hierarchy) -> ImportReport:
    """Import a folder of pictures, a Parquet file or a tar; write shards, quarantine.parquet and quarantine.jsonl to `output`.

    An entry has a prompt, the two lists `positive` and `negative` of attribute ids or neither, and an optional `id` (by default
    the file's name). A bad entry is set aside with its reasons. Raises DataError if there is no such folder or file, no picture
    could be kept, `output` already holds shards, or the disk is full.
    """
    run = _Import(read_pictures(folder), folder.name if folder.is_dir() else folder.parent.name, tree)
    with staged(output) as stage:
        kept = stage_shards(run.rows(), stage)
        if not kept:
            raise DataError(run.nothing_kept(folder))
        stage_quarantine(run.set_aside, stage)
    return ImportReport(kept, len(run.set_aside), run.reasons, run.folder.told(), run.unlabelled, run.splits)


@dataclass
class _Import:
    """One pass over the pictures: yields good rows and notes the bad ones."""

    folder: Folder
    name: str
    tree: Hierarchy
    set_aside: list[dict[str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    splits: Counter[Split | None] = field(default_factory=Counter)
    _sources: dict[str, str] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        pictures = self.folder.pictures
        for picture, data in zip(pictures, read(picture.extent for picture in pictures), strict=True):
            sample_id = picture.entry.fields.get("id", picture.name)
            try:
                yield self._row(picture, sample_id, data)
            except RowError as error:
                self._set_aside(f"{self.name}/{picture.entry.source}", str(sample_id), error.reasons)
        for refused in self.folder.set_aside:
            self._set_aside(f"{self.name}/{refused.source}", refused.id, [Reason(refused.kind, refused.reason)])

    def nothing_kept(self, folder: Path) -> str:
        """Return why there is no data set, with an example: a fault of the metadata, if there is one, explains the others."""
        if not self.set_aside:
            return f"{folder} holds no pictures; give the folder that does"
        faults = (f"{each.source}: {each.reason}" for each in self.folder.set_aside if each.kind != "no picture")
        example = next(faults, "{source}: {reason}".format(**self.set_aside[0]))
        return f"no picture of {folder} could be kept, and {len(self.set_aside)} were set aside; {example}"

    def _row(self, picture: Pictured, sample_id: Any, data: bytes | PictureError) -> dict[str, Any]:
        fields, source = picture.entry.fields, f"{self.name}/{picture.entry.source}"
        prompt = fields.get("prompt")
        texts = {"prompt": prompt, "id": sample_id}
        if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
            alone = "; nothing describes this picture" if picture.entry.source == picture.name else ""
            raise RowError([Reason("missing or wrong field", f"{' and '.join(wrong)}: missing or not a text{alone}")])
        if (first := self._sources.setdefault(sample_id, source)) != source:
            raise RowError([Reason("duplicate id", f"the id {sample_id!r} is that of {first} already")])
        labels = Labels(str(prompt), *self._labels(picture))
        if isinstance(data, PictureError):
            raise RowError([Reason("unreadable file", str(data))])
        row = annotated_row(sample_id, data, labels, Origin(source, picture.split), self.tree)
        self.splits[picture.split] += 1
        self.unlabelled += not labels.positive_ids and not labels.negative_ids
        return row

    def _labels(self, picture: Pictured) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return (positive, negative) attribute ids. An entry with one list must have both, or a mistyped key would pass for "no
        faults".
        """
        given = {key: picture.entry.fields[key] for key in ("positive", "negative") if key in picture.entry.fields}
        if not given:
            return (), ()
        for key in ("positive", "negative"):
            ids = given.get(key)
            if not isinstance(ids, list) or not all(isinstance(attribute_id, str) for attribute_id in ids):
                sentence = f"{key!r} is missing or not a list of attribute ids; write [] for none"
                raise RowError([Reason("missing or wrong field", sentence)])
        return tuple(given["positive"]), tuple(given["negative"])

    def _set_aside(self, source: str, sample_id: str, reasons: list[Reason]) -> None:
        self.reasons.update({reason.kind for reason in reasons})
        row = {"source": source, "id": sample_id, "reason": "; ".join(reason.sentence for reason in reasons)}
        # Broken text is escaped, since Parquet holds valid Unicode only.
        self.set_aside.append({key: text.encode("utf-8", "backslashreplace").decode() for key, text in row.items()})


def stage_quarantine(rows: list[dict[str, str]], stage: Stage) -> None:
    """Write both forms of the quarantine, even if it is empty, so that its absence never needs a guess."""
    with open(stage("quarantine.parquet"), "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE), file)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    stage("quarantine.jsonl").write_text(text, encoding="utf-8")

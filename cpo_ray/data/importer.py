"""Import of a folder of images with a `metadata.jsonl`: good rows into annotated shards, bad rows into a readable quarantine."""

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
from cpo_ray.data.picture import MAX_BYTES
from cpo_ray.data.shards import DataError, Stage, stage_shards, staged
from cpo_ray.data.validate import Reason, RowError, annotated_row
from cpo_ray.hierarchy import Hierarchy

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class ImportReport:
    """How many rows were kept and set aside; `reasons` counts what was wrong, and one row can have several faults."""

    kept: int
    set_aside: int
    reasons: Counter[str]

    def summary(self) -> str:
        """The counts as one sentence."""
        if not self.set_aside:
            return f"{self.kept} pictures imported, none set aside"
        reasons = ", ".join(f"{kind}: {count}" for kind, count in self.reasons.most_common())
        return f"{self.kept} pictures imported, {self.set_aside} set aside ({reasons}); quarantine.jsonl says why, row by row"


def import_folder(folder: Path, output: Path, tree: Hierarchy) -> ImportReport:
    """Read `folder/metadata.jsonl` and the images it names; write shards, quarantine.parquet and quarantine.jsonl to `output`.

    A line is a JSON object with `file_name` (relative to the folder), `prompt` (or `text`), `positive` and `negative` (lists of
    attribute ids) and optionally `id` (otherwise the file name).  A bad line is set aside with its reasons, the rest goes on.
    Raises DataError where the metadata is missing, `output` already holds shards, or the disk is full.
    """
    metadata = folder / METADATA
    if not metadata.is_file():
        raise DataError(f"there is no {metadata}; write one line of JSON per picture with file_name, prompt, positive, negative")
    run = _Import(folder.resolve(), tree)
    with staged(output) as stage:
        kept = stage_shards(run.rows(), stage)
        stage_quarantine(run.set_aside, stage)
    return ImportReport(kept, len(run.set_aside), run.reasons)


@dataclass
class _Import:
    """One pass over the metadata: yields good rows and keeps note of bad ones."""

    folder: Path
    tree: Hierarchy
    set_aside: list[dict[str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    lines: dict[str, int] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        with open(self.folder / METADATA, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                source = f"{self.folder.name}/{METADATA}:{number}"
                entry: dict[str, Any] = {}
                try:
                    entry = parse_line(line)
                    yield self._row(entry, source, number)
                except RowError as error:
                    self._set_aside(source, str(entry.get("id", entry.get("file_name", ""))), error.reasons)

    def _row(self, entry: dict[str, Any], source: str, number: int) -> dict[str, Any]:
        name, sample_id, labels = _fields(entry)
        first = self.lines.setdefault(sample_id, number)
        if first != number:
            raise RowError([Reason("duplicate id", f"the id {sample_id!r} is that of line {first} already")])
        return annotated_row(sample_id, _read(self.folder, name), labels, source, self.tree)

    def _set_aside(self, source: str, sample_id: str, reasons: list[Reason]) -> None:
        self.reasons.update({reason.kind for reason in reasons})
        row = {"source": source, "id": sample_id, "reason": "; ".join(reason.sentence for reason in reasons)}
        # A broken text is spelled out, since Parquet holds valid Unicode only.
        self.set_aside.append({key: text.encode("utf-8", "backslashreplace").decode() for key, text in row.items()})


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object in a line of metadata. Raises RowError."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError([Reason("broken line", f"the line is not valid JSON: {error}")]) from None
    if not isinstance(entry, dict):
        raise RowError(
            [Reason("broken line", "the line is no JSON object; write {…} with file_name, prompt, positive and negative")]
        )
    return entry


def _fields(entry: dict[str, Any]) -> tuple[str, str, Labels]:
    """File name, id and labels of a line. Raises RowError where a field is missing or of another type."""
    name, prompt = entry.get("file_name"), entry.get("prompt", entry.get("text"))
    sample_id = entry.get("id", name)
    if not isinstance(name, str) or not isinstance(prompt, str) or not isinstance(sample_id, str):
        texts = {"file_name": name, "prompt": prompt, "id": sample_id}
        wrong = [key for key, value in texts.items() if not isinstance(value, str)]
        raise RowError([Reason("missing or wrong field", f"{' and '.join(wrong)}: missing or no text")])
    return name, sample_id, Labels(prompt, _ids(entry, "positive"), _ids(entry, "negative"))


def _ids(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    # Required also where empty: a mistyped key would otherwise pass for a picture without attributes.
    ids = entry.get(key)
    if not isinstance(ids, list) or not all(isinstance(attribute_id, str) for attribute_id in ids):
        raise RowError([Reason("missing or wrong field", f"{key!r} is missing or no list of attribute ids; write [] for none")])
    return tuple(ids)


def _read(folder: Path, name: str) -> bytes:
    """The bytes of a file in the folder, one more than the most that a picture may have, so that longer ones are told apart."""
    try:
        path = (folder / name).resolve()
        if path.is_relative_to(folder):
            with open(path, "rb") as file:
                return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RowError([Reason("unreadable file", f"the file {name!r} cannot be read: {error.strerror}")]) from None
    except ValueError:
        raise RowError([Reason("unreadable file", f"{name!r} is not a possible file name")]) from None
    raise RowError([Reason("path leaves the folder", f"the path {name!r} leaves the imported folder; copy the picture into it")])


def stage_quarantine(rows: list[dict[str, str]], stage: Stage) -> None:
    """Write both forms of the quarantine, also when nothing is in it: then that is what they say."""
    with open(stage("quarantine.parquet"), "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE), file)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    stage("quarantine.jsonl").write_text(text, encoding="utf-8")

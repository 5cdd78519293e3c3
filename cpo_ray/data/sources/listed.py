"""What is listed: pictures that were not opened yet, and what is set aside with its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import get_args

from cpo_ray.core.splits import Split
from cpo_ray.data.sources.extent import Extent
from cpo_ray.data.sources.metadata import Entry
from cpo_ray.data.sources.names import split_named


@dataclass(frozen=True)
class Pictured:
    """A picture that was not opened yet: its name, what its metadata says, where its bytes lie, and its published split."""

    name: str
    entry: Entry
    extent: Extent
    split: Split | None = None


@dataclass(frozen=True)
class SetAside:
    """Something unused and the reason. `kind` groups the reasons."""

    source: str
    id: str
    kind: str
    reason: str

    @classmethod
    def of(cls, *texts: str) -> SetAside:
        """Escape broken text, since Parquet holds valid Unicode only."""
        return cls(*(text.encode("utf-8", "backslashreplace").decode() for text in texts))


@dataclass
class Folder:
    """The contents of a folder or a file: its pictures in the order of their names, and what is set aside."""

    pictures: list[Pictured] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    columns: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(our field, the column or the file's suffix that it came from) → count."""
    unread: Counter[str] = field(default_factory=Counter)
    """Columns that are not read → count."""

    def take(self, picture: Pictured) -> None:
        """Add a picture, or set it aside if what describes it cannot be read. A split that its entry names counts most."""
        entry, written = picture.entry, picture.entry.fields.get("split") or ""
        split = split_named(written) if isinstance(written, str) else None
        if entry.problem:
            self.refuse(entry.source, picture.name, "broken caption", entry.problem)
        elif written and split is None:
            reason = f"the split {written!r} is none of train, validation and test; name one of them, or leave the column out"
            self.refuse(entry.source, picture.name, "unknown split", reason)
        else:
            self.columns.update(entry.columns.items())
            self.unread.update(entry.unread)
            self.pictures.append(replace(picture, split=split or picture.split))

    def refuse(self, source: str, sample_id: str, kind: str, reason: str) -> None:
        """Set something aside."""
        self.set_aside.append(SetAside.of(source, sample_id, kind, reason))

    def told(self) -> str:
        """Return where the prompts and other fields came from, as one line; an empty text if nothing described the pictures."""
        prompts = [f"{count} from {column!r}" for (field, column), count in self.columns.most_common() if field == "prompt"]
        parts = [f"prompts: {', '.join(prompts)}"] if prompts else []
        others = {f"{field} from {column!r}" for field, column in self.columns if field not in ("prompt", column)}
        parts += [f"also {', '.join(sorted(others))}"] if others else []
        parts += [f"not read: {', '.join(sorted(map(repr, self.unread)))}"] if self.unread else []
        return "; ".join(parts)


def told_of_splits(splits: Counter[Split | None]) -> str:
    """Return what became of published splits, by their counts, as one line; an empty text where there are none."""
    published = [f"{name} {splits[name]}" for name in get_args(Split) if splits[name]]
    if not published:
        return ""
    rest = f"; {splits[None]} pictures without one are split by their ids" if splits[None] else ""
    missing = [name for name in get_args(Split) if not splits[name] and not splits[None]]
    lacking = f"; there are no {' and no '.join(missing)} pictures" if missing else ""
    return f"published splits are kept: {', '.join(published)}{rest}{lacking}"

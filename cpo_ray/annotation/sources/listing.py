"""A listing of pictures, none of which was read yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpo_ray.core.splits import Split
from cpo_ray.data.folder import SetAside


@dataclass(frozen=True)
class PictureEntry:
    """A picture that was not read yet. `prompt` is empty if there is none; `source` names its place for people.

    Its bytes are `length` bytes from `start` in `file`; with a `column` they are row `length` of row group `start`. `split` is
    the published one.
    """

    id: str
    prompt: str
    source: str
    file: str
    start: int
    length: int
    column: str = ""
    split: Split | None = None


@dataclass
class Listing:
    """All pictures of a source in the order of their names, and what is wrong with the others."""

    entries: list[PictureEntry] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    _ids: dict[str, str] = field(default_factory=dict)

    def add(self, entry: PictureEntry) -> None:
        """Add a picture unless its id is taken."""
        first = self._ids.setdefault(entry.id, entry.source)
        if first == entry.source:
            self.entries.append(entry)
        else:
            self.refuse(entry.source, entry.id, "duplicate id", f"the id {entry.id!r} is that of {first} already")

    def refuse(self, source: str, sample_id: str, kind: str, reason: str) -> None:
        """Set something aside."""
        self.set_aside.append(SetAside.of(source, sample_id, kind, reason))


def is_unicode(text: str) -> bool:
    """Return whether the text can be written as UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)

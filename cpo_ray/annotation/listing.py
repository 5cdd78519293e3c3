"""The pictures that an annotation asks about, none of which was read yet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cpo_ray.config.annotation import PictureSource
from cpo_ray.core.splits import Split
from cpo_ray.data.sources.extent import Extent
from cpo_ray.data.sources.folder import read_pictures
from cpo_ray.data.sources.listed import Pictured, SetAside, told_of_splits
from cpo_ray.data.sources.parquet import Columns


@dataclass(frozen=True)
class PictureEntry:
    """A picture that was not read yet. `prompt` is empty if there is none, `source` names its place."""

    id: str
    prompt: str
    source: str
    extent: Extent
    split: Split | None = None


@dataclass
class Listing:
    """All pictures of a source in the order of their names, and what is wrong with the others. `told` says which columns were
    read, and which splits are kept.
    """

    entries: list[PictureEntry] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    told: str = ""
    _ids: dict[str, str] = field(default_factory=dict)

    def add(self, picture: Pictured, top: Path) -> None:
        """Add a picture unless its id is taken, it is no valid text, or its file lies outside `top`."""
        fields, source = picture.entry.fields, picture.entry.source
        sample_id, prompt = fields.get("id", picture.name), fields.get("prompt", "")
        if not Path(picture.extent.file).resolve().is_relative_to(top.resolve()):
            # What is annotated may be sent to another machine, so nothing is that its owner did not put here.
            reason = f"{picture.name!r} is a link that leaves the folder; copy the picture into it"
            self.set_aside.append(SetAside.of(picture.name, picture.name, "path leaves the folder", reason))
        elif not all(isinstance(text, str) and _is_unicode(text) for text in (sample_id, prompt)) or not sample_id.strip():
            self.set_aside.append(SetAside.of(source, str(sample_id), "missing or wrong field", "id and prompt must be text"))
        elif (first := self._ids.setdefault(sample_id, source)) != source:
            reason = f"the id {sample_id!r} is that of {first} already"
            self.set_aside.append(SetAside.of(source, sample_id, "duplicate id", reason))
        else:
            self.entries.append(PictureEntry(sample_id, prompt.strip(), picture.name, picture.extent, picture.split))


def list_pictures(settings: PictureSource) -> Listing:
    """List everything at `settings.path`, in any layout that the import reads. Raises DataError as `read_pictures` does."""
    path, listing = settings.path.absolute(), Listing()
    found = read_pictures(path, Columns(settings.image_column, settings.id_column, settings.prompt_column))
    for picture in found.pictures:
        listing.add(picture, path)
    listing.set_aside += found.set_aside
    splits = told_of_splits(Counter(entry.split for entry in listing.entries))
    listing.told = "\n".join(filter(None, (found.told(), splits)))
    return listing


def _is_unicode(text: str) -> bool:
    """Return whether the text can be written as UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)

"""Read a folder of pictures in the layouts that people have: every file is a picture, describes one, or is set aside with a
reason.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cpo_ray.core.splits import Split
from cpo_ray.data.metadata import NAMES, SIDECARS, Entry, MetadataError, entries, sidecar

#: Suffixes of picture files. Kinds that cannot be read are set aside when they are decoded.
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
SUFFIXES |= {".avif", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".ico", ".tga", ".exr", ".dng"}
#: First bytes of picture files, for files without a suffix, as in hub caches.
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
#: Files that operating systems leave beside pictures.
_NOBODYS = ("thumbs.db", "desktop.ini", "__macosx")
#: Names of folders that stand for a split, as in data sets published on the hub.
SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Pictured:
    """A picture that was not opened yet: its path, its name in the folder, and what its metadata says."""

    path: Path
    name: str
    entry: Entry
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
    """The contents of a folder: its pictures in the order of their names, files that hold more of them, and what is set aside."""

    pictures: list[Pictured] = field(default_factory=list)
    containers: dict[str, Path] = field(default_factory=dict)
    set_aside: list[SetAside] = field(default_factory=list)
    columns: Counter[str] = field(default_factory=Counter)
    """Where prompts came from: a column's name or a file's suffix, with its count."""

    def refuse(self, source: str, sample_id: str, kind: str, reason: str) -> None:
        """Set something aside."""
        self.set_aside.append(SetAside.of(source, sample_id, kind, reason))

    def told(self) -> str:
        """Return where the prompts came from, as half a sentence; an empty text without prompts."""
        return ", ".join(f"{count} from {name!r}" for name, count in self.columns.most_common())


def read_folder(top: Path, holding: tuple[str, ...] = ()) -> Folder:
    """List a folder and everything below it. Pictures are not opened. Names with an end in `holding` are those of containers.

    A metadata file describes pictures in its own folder and below. Its names may have backslashes, another Unicode form than the
    disk's, or another case, and several entries may name one picture. A picture without metadata may have a caption file beside
    it.
    """
    found = Folder()
    files = dict(_files(top, found))
    described: dict[str, list[Entry]] = {}
    metadata = {name: files.pop(name) for name in list(files) if PurePosixPath(name).name in NAMES}
    names = _Names(files)
    for name, path in metadata.items():
        _describe(path, name, names, described, found)
    captions = _captions(files)
    for name, path in files.items():
        if picture := captions.get(name):
            if picture in described:
                found.refuse(name, picture, "unused caption", f"{described[picture][0].source} speaks of {picture} already")
        elif name in described or _is_picture(path):
            beside = next((caption for caption, of in captions.items() if of == name), None)
            own = Entry(name, {}, {}) if beside is None else sidecar(files[beside], beside)
            for entry in described.get(name, [own]):
                _take(Pictured(path, name, entry, _split(name)), found)
        elif name.lower().endswith(holding):
            found.containers[name] = path
        else:
            found.refuse(name, name, "no picture", f"{name} is neither a picture nor a metadata file")
    return found


def _take(picture: Pictured, found: Folder) -> None:
    if picture.entry.problem:
        found.refuse(picture.entry.source, picture.name, "broken caption", picture.entry.problem)
        return
    if column := picture.entry.columns.get("prompt"):
        found.columns[column] += 1
    found.pictures.append(picture)


def _files(top: Path, found: Folder) -> Iterator[tuple[str, Path]]:
    """Yield (name in the folder, path) of all regular files that are not hidden. Links are followed; no folder is read twice."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(top, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in _NOBODYS)
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(top).as_posix()
            if name.startswith(".") or name.lower() in _NOBODYS:
                continue
            if path.is_file():
                yield relative, path
            else:  # reading a pipe would block the import for ever, and a link may lead nowhere
                found.refuse(relative, relative, "unreadable file", f"{relative} is a link to nothing, or no plain file")


class _Names:
    """Files by the names that people write for them."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._exact = files
        self._alike: dict[str, list[str]] = {}
        for name in files:
            self._alike.setdefault(_alike(name), []).append(name)

    def find(self, name: str) -> str | None:
        """Return the file with exactly this name, or the only one that differs just in Unicode form or case."""
        if name in self._exact:
            return name
        alike = self._alike.get(_alike(name), [])
        return alike[0] if len(alike) == 1 else None


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _describe(file: Path, name: str, names: _Names, described: dict[str, list[Entry]], found: Folder) -> None:
    """Note what each entry of one metadata file says about its picture."""
    folder = PurePosixPath(name).parent
    try:
        for entry in entries(file, name):
            written = entry.fields.get("file_name")
            called = str(entry.fields.get("id", written or ""))
            if entry.problem:
                found.refuse(entry.source, called, "broken line", entry.problem)
            elif not isinstance(written, str) or not written.strip():
                found.refuse(entry.source, called, "missing or wrong field", "file_name: missing or not a text")
            elif (place := _inside(folder, written)) is None:
                reason = f"the path {written!r} leaves the folder; copy the picture into it"
                found.refuse(entry.source, called, "path leaves the folder", reason)
            elif (picture := names.find(place)) is None:
                found.refuse(entry.source, called, "unreadable file", f"there is no picture {written!r} beside {name}")
            else:
                described.setdefault(picture, []).append(entry)
    except MetadataError as error:
        found.refuse(name, "", "unreadable metadata", str(error))


def _inside(folder: PurePosixPath, written: str) -> str | None:
    """Return the name in the top folder of a file that a metadata file names; None for a file outside."""
    path = os.path.normpath(folder / written.replace("\\", "/"))
    outside = path.startswith(("/", "..")) or path[1:2] == ":"  # a drive of Windows
    return None if outside else path


def _captions(files: Mapping[str, Path]) -> dict[str, str]:
    """Map each caption file to the picture with the same name beside it."""
    pictures = {name.rpartition(".")[0]: name for name, path in files.items() if path.suffix.lower() in SUFFIXES}
    sidecars = (name for name, path in files.items() if path.suffix.lower() in SIDECARS)
    return {name: pictures[stem] for name in sidecars if (stem := name.rpartition(".")[0]) in pictures}


def _is_picture(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix:
        return False
    try:
        with path.open("rb") as file:
            return file.read(16).startswith(_SIGNATURES)
    except OSError:
        return False


def _split(name: str) -> Split | None:
    """Return the split that a published data set put a picture into, by the name of its folder."""
    return next((SPLITS[part.lower()] for part in PurePosixPath(name).parts[:-1] if part.lower() in SPLITS), None)

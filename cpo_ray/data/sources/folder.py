"""Read pictures in the layouts that people have: every file is a picture, holds or describes some, or is set aside with a reason.

Pictures are listed here, by import and annotation alike. Their bytes are read when their turn comes, on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from cpo_ray.data.shards import DataError
from cpo_ray.data.sources.extent import Extent
from cpo_ray.data.sources.listed import Folder, Pictured
from cpo_ray.data.sources.metadata import NAMES, SIDECARS, Entry, MetadataError, caption, entries
from cpo_ray.data.sources.names import COMPRESSED, CONTAINERS, Names, inside, is_picture, split_of_file
from cpo_ray.data.sources.parquet import ANY, Columns, list_parquet
from cpo_ray.data.sources.table import MOST_TEXT
from cpo_ray.data.sources.webdataset import list_tar

#: Files that operating systems leave beside pictures.
_NOBODYS = ("thumbs.db", "desktop.ini", "__macosx")


def read_pictures(path: Path, columns: Columns = ANY) -> Folder:
    """List the pictures of a folder with everything below it, or of one file: a picture, a Parquet file or a plain tar.

    Raises DataError if nothing is there, the file is of another kind, or a Parquet file lacks a column that `columns` names.
    """
    if path.is_dir():
        return _read_folder(path, columns)
    if not path.exists():
        raise DataError(f"there is nothing at {path}; give a folder of pictures, a Parquet file or a tar")
    found = Folder()
    if path.is_file() and path.name.lower().endswith((*CONTAINERS, *COMPRESSED)):
        _list_container(path, path.name, columns, found)
    elif path.is_file() and is_picture(path):
        found.take(_pictured(path, path.name, Entry(path.name, {}, {})))
    else:
        raise DataError(f"{path} is neither a picture nor a Parquet file nor a tar; give one of these, or a folder")
    return found


def _read_folder(top: Path, columns: Columns) -> Folder:
    """A metadata file describes pictures in its own folder and below. Its names may have backslashes, another Unicode form than
    the disk's, another case, or no suffix, and several entries may name one picture. A picture without metadata may have caption
    files beside it.
    """
    found = Folder()
    files = dict(_files(top, found))
    metadata = {name: files.pop(name) for name in list(files) if PurePosixPath(name).name.lower() in NAMES}
    containers = {name: files.pop(name) for name in list(files) if name.lower().endswith((*CONTAINERS, *COMPRESSED))}
    texts = {name for name, path in files.items() if path.suffix.lower() in SIDECARS}
    pictures = {name: path for name, path in files.items() if name not in texts and is_picture(path)}
    described: dict[str, list[Entry]] = {}
    names = Names(pictures)
    for name, path in metadata.items():
        _describe(path, name, names, described, found)
    spoken_of = _captions(texts, pictures)
    beside: dict[str, list[str]] = {}
    for name, picture in spoken_of.items():
        beside.setdefault(picture, []).append(name)
    for name, path in files.items():
        if name in pictures:
            captions = beside.get(name, []) if name not in described else []
            own = caption([(each, _small(files[each])) for each in captions]) if captions else Entry(name, {}, {})
            for entry in described.get(name, [own]):
                found.take(_pictured(path, name, entry))
        elif name not in spoken_of:
            found.refuse(name, name, "no picture", f"{name} is neither a picture nor a metadata file")
        elif (picture := spoken_of[name]) in described:
            found.refuse(name, picture, "unused caption", f"{described[picture][0].source} speaks of {picture} already")
    for name, path in containers.items():
        _list_container(path, name, columns, found)
    return found


def _pictured(path: Path, name: str, entry: Entry) -> Pictured:
    return Pictured(name, entry, Extent(str(path), 0, path.stat().st_size), split_of_file(name))


def _list_container(path: Path, name: str, columns: Columns, found: Folder) -> None:
    if name.lower().endswith(".parquet"):
        list_parquet(path, name, columns, found)
    elif name.lower().endswith(".tar"):
        list_tar(path, name, found)
    else:
        reason = f"{name} cannot be read at random; unpack it to a folder or a plain .tar, or save it as Parquet"
        found.refuse(name, name, "compressed tar", reason)


def _files(top: Path, found: Folder) -> Iterator[tuple[str, Path]]:
    """Yield (name in the folder, path) of all regular files that are not hidden. Links are followed; no folder is read twice."""

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, top)
        found.refuse(name, name, "unreadable file", f"the folder {name} cannot be read: {error.strerror}")

    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(top, followlinks=True, onerror=unreadable):
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


def _describe(file: Path, name: str, names: Names, described: dict[str, list[Entry]], found: Folder) -> None:
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
            elif (place := inside(folder, written)) is None:
                reason = f"the path {written!r} leaves the folder; copy the picture into it"
                found.refuse(entry.source, called, "path leaves the folder", reason)
            elif (picture := names.find(place)) is None:
                found.refuse(entry.source, called, "unreadable file", f"there is no picture {written!r} beside {name}")
            else:
                described.setdefault(picture, []).append(entry)
    except MetadataError as error:
        found.refuse(name, "", "unreadable metadata", str(error))


def _captions(texts: set[str], pictures: Iterable[str]) -> dict[str, str]:
    """Map each caption file to the picture beside it that has its name, with or without the picture's suffix."""
    called = {name.removesuffix(PurePosixPath(name).suffix): name for name in pictures} | {name: name for name in pictures}
    stems = {name: name.rpartition(".")[0] for name in sorted(texts)}
    return {name: called[stem] for name, stem in stems.items() if stem in called}


def _small(path: Path) -> bytes | str:
    """Return the bytes of a caption file, or why they cannot be read. More than a caption may have are noticed by its reader."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_TEXT + 1)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"

"""List the pictures of a WebDataset tar. Nothing is unpickled or unpacked: a member of a tar is a range of bytes in it."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

from cpo_ray.data.sources.extent import Extent
from cpo_ray.data.sources.listed import Folder, Pictured
from cpo_ray.data.sources.metadata import SIDECARS, Entry, caption
from cpo_ray.data.sources.names import SUFFIXES, split_of_file
from cpo_ray.data.sources.table import MOST_TEXT


def list_tar(path: Path, name: str, found: Folder) -> None:
    """List a WebDataset tar. Members belong to one sample if their names differ only after the first dot.

    Members that lead out of the archive, links and sparse members are set aside. Members of other kinds, such as .pickle, are
    counted by kind and never opened.
    """
    pictures: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    captions: dict[str, list[tuple[str, bytes | str]]] = {}
    others: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                suffix, key = PurePosixPath(member.name).suffix.lower(), _key(member.name)
                if member.isdir():
                    continue
                if problem := _problem(member):
                    found.refuse(f"{name}:{member.name}", f"{name}/{member.name}", *problem)
                elif suffix in SUFFIXES:
                    pictures.setdefault(key, []).append((member.name.removeprefix(f"{key}."), member))
                elif suffix in SIDECARS:
                    stream = tar.extractfile(member) if member.size <= MOST_TEXT else None
                    data = stream.read() if stream else f"it is larger than {MOST_TEXT // 1024} KiB, which no prompt is"
                    captions.setdefault(key, []).append((f"{name}:{member.name}", data))
                else:
                    others[suffix] += 1
            # tarfile takes a damaged header for the end of the archive, which is a block of zeros.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except Exception as error:  # tarfile raises any exception, and one file must not end the work on all others
        found.refuse(name, name, "damaged tar", f"{name} is damaged ({error}); what comes after the damage is not listed")
    for key, members in pictures.items():
        for extension, member in members:
            _list(path, name, key if len(members) == 1 else f"{key}.{extension}", member, captions.get(key), found)
    for key in captions.keys() - pictures.keys():
        for source, _ in captions[key]:
            found.refuse(source, f"{name}/{key}", "no picture", f"{source} has no picture beside it")
    for suffix, count in others.items():
        found.refuse(name, name, "no picture", f"{count} members with suffix {suffix!r} are not read")


def _list(
    path: Path, name: str, key: str, member: tarfile.TarInfo, captions: list[tuple[str, bytes | str]] | None, found: Folder
) -> None:
    source = f"{name}:{member.name}"
    entry = caption(captions) if captions else Entry(source, {}, {})
    split = split_of_file(f"{name.rpartition('/')[0]}/{member.name}") or split_of_file(name)
    found.take(Pictured(f"{name}/{key}", entry, Extent(str(path), member.offset_data, member.size), split))


def _key(name: str) -> str:
    folder, _, last = name.rpartition("/")
    stem = last.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _problem(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Return the kind and the reason for which a member is set aside; None if it is a plain file in the archive."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "path leaves the folder", f"the name {member.name!r} leads out of the archive; pack the file with a plain name"
    if member.sparse:
        return "sparse member", "a sparse member of a tar is not read"
    return None if member.isreg() else ("unreadable file", f"{member.name!r} is a link, or no plain file")

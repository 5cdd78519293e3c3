"""What names of files mean: pictures, captions, splits, and the names that people write for files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cpo_ray.core.splits import Split

#: Suffixes of picture files. Kinds that cannot be read are set aside when they are decoded.
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
SUFFIXES |= {".avif", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".ico", ".tga", ".exr", ".dng"}
#: Suffixes of files that hold many pictures, and of those that would if they were not compressed.
CONTAINERS, COMPRESSED = (".parquet", ".tar"), (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".zip", ".arrow")
#: First bytes of picture files, for files without a known suffix, as in hub caches.
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
#: Names that stand for a split, as in data sets published on the hub.
_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF: dict[str, Split] = {name: split for split, names in _SPLITS.items() for name in names}
#: A file of many pictures whose name begins with a split, such as train-00000-of-00002.parquet.
_PART = re.compile(rf"({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)


def split_named(written: str) -> Split | None:
    """Return the split that a word stands for; None for any other word."""
    return _SPLIT_OF.get(written.strip().lower())


def split_of_file(name: str) -> Split | None:
    """Return the split that a published data set put a file into, by its folders, and for a file of many pictures by its name."""
    *folders, last = PurePosixPath(name).parts
    found = next((split for folder in folders if (split := split_named(folder))), None)
    if found is None and last.lower().endswith(CONTAINERS) and (part := _PART.match(last)):
        return split_named(part[1])
    return found


def is_picture(path: Path) -> bool:
    """Return whether a plain file is a picture: by its suffix, or by its first bytes if the suffix says nothing."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            first = file.read(16)
    except OSError:
        return False
    return first.startswith(_SIGNATURES) or (first.startswith(b"RIFF") and first[8:12] == b"WEBP")


class Names:
    """Files by the names that people write for them."""

    def __init__(self, files: Iterable[str]) -> None:
        self._exact = set(files)
        self._alike: dict[str, list[str]] = {}
        self._stems: dict[str, list[str]] = {}
        for name in self._exact:
            self._alike.setdefault(_alike(name), []).append(name)
            if PurePosixPath(name).suffix.lower() in SUFFIXES:
                self._stems.setdefault(_alike(name.rpartition(".")[0]), []).append(name)

    def find(self, name: str) -> str | None:
        """Return the file with exactly this name, or the only one that differs in Unicode form, case or a left-out suffix."""
        if name in self._exact:
            return name
        alike = self._alike.get(_alike(name)) or self._stems.get(_alike(name), [])
        return alike[0] if len(alike) == 1 else None


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def inside(folder: PurePosixPath, written: str) -> str | None:
    """Return the name in the top folder of a file that a metadata file names; None for a file outside."""
    path = os.path.normpath(folder / written.replace("\\", "/"))
    outside = path.startswith(("/", "..")) or path[1:2] == ":"  # a drive of Windows
    return None if outside else path

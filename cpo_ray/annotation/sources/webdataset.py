"""List the pictures of a WebDataset tar. Nothing is unpickled or unpacked: a member of a tar is a range of bytes in it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cpo_ray.annotation.sources.listing import Listing, PictureEntry, is_unicode
from cpo_ray.data.folder import SUFFIXES

MAX_CAPTION = 2**16


def list_tar(path: Path, name: str, listing: Listing) -> None:
    """List a WebDataset tar. Members belong to one sample if their names differ only after the first dot."""
    pictures: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    prompts: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, last = member.name.rpartition("/")
                stem, _, extension = last.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                suffix = f".{extension.lower().rpartition('.')[2]}"
                if not member.isreg() or not stem:
                    continue
                if suffix in SUFFIXES:
                    pictures.setdefault(key, []).append((extension, member))
                elif suffix in (".txt", ".json") and member.size <= MAX_CAPTION and not member.sparse:
                    # Other members are never opened: .pkl and .pth would run code.
                    stream = tar.extractfile(member)
                    prompts[key] = _caption(stream.read() if stream else b"", suffix) or prompts.get(key, "")
            # tarfile takes a damaged header for the end of the archive, which is a block of zeros.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        listing.refuse(name, name, "damaged tar", f"{name} is damaged ({error}); what comes after the damage is not listed")
    for key, members in pictures.items():
        for extension, member in members:
            sample_id = f"{name}/{key}" if len(members) == 1 else f"{name}/{key}.{extension}"
            if member.sparse:
                listing.refuse(f"{name}:{member.name}", sample_id, "sparse member", "a sparse member of a tar is not read")
                continue
            entry = PictureEntry(
                sample_id, prompts.get(key, ""), f"{name}:{member.name}", str(path), member.offset_data, member.size
            )
            listing.add(entry)


def _caption(data: bytes, suffix: str) -> str:
    """Return the content prompt in a .txt or .json of a sample; an empty text if there is none."""
    try:
        text = data.decode()
        if suffix == ".txt":
            return text.strip()
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    candidates: Iterable[Any] = (found.get(key) for key in ("prompt", "caption", "text")) if isinstance(found, dict) else ()
    return next((c.strip() for c in candidates if isinstance(c, str) and is_unicode(c)), "")

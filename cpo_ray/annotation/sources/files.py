"""List the pictures at a path: a folder with everything below it, or one file.

Listing reads names and captions only. A picture is read when its turn comes, on any machine.
"""

from __future__ import annotations

from pathlib import Path

from cpo_ray.annotation.sources.listing import Listing, PictureEntry, is_unicode
from cpo_ray.annotation.sources.parquet import list_parquet
from cpo_ray.annotation.sources.webdataset import list_tar
from cpo_ray.config.annotation import PictureSource
from cpo_ray.data.folder import SUFFIXES, Pictured, read_folder
from cpo_ray.data.shards import DataError

#: Suffixes of files that hold many pictures, and of those that would if they were not compressed.
CONTAINERS, COMPRESSED = (".parquet", ".tar"), (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def list_pictures(settings: PictureSource) -> Listing:
    """List everything at `settings.path`. Raises DataError if nothing is there or a Parquet file lacks the column.

    A folder may have any of the layouts and metadata files that the import reads.
    """
    path, listing = settings.path.absolute(), Listing()
    if path.is_dir():
        found = read_folder(path, (*CONTAINERS, *COMPRESSED))
        for picture in found.pictures:
            _list_picture(picture, path, listing)
        for name, container in found.containers.items():
            _list_container(container, name, settings, listing)
        listing.set_aside += found.set_aside
    elif path.suffix.lower() in SUFFIXES and path.is_file():
        listing.add(PictureEntry(path.name, "", path.name, str(path), 0, path.stat().st_size))
    elif path.name.lower().endswith((*CONTAINERS, *COMPRESSED)) and path.is_file():
        _list_container(path, path.name, settings, listing)
    elif path.exists():
        raise DataError(
            f"{settings.path} is neither a picture nor a Parquet file nor a tar; set pictures.path to one, or a folder"
        )
    else:
        raise DataError(f"there is nothing at {settings.path}; set pictures.path to a folder, a Parquet file or a tar")
    return listing


def _list_picture(picture: Pictured, top: Path, listing: Listing) -> None:
    fields, name = picture.entry.fields, picture.name
    sample_id, prompt = fields.get("id", name), fields.get("prompt", "")
    if not picture.path.resolve().is_relative_to(top.resolve()):
        # What is annotated may be sent to another machine, so nothing is that its owner did not put here.
        reason = f"{name!r} is a link that leaves the folder; copy the picture into it"
        listing.refuse(name, name, "path leaves the folder", reason)
    elif not all(isinstance(text, str) and is_unicode(text) for text in (sample_id, prompt)) or not sample_id.strip():
        listing.refuse(picture.entry.source, str(sample_id), "missing or wrong field", "id and prompt must be text")
    else:
        length = picture.path.stat().st_size
        listing.add(PictureEntry(sample_id, prompt.strip(), name, str(picture.path), 0, length, split=picture.split))


def _list_container(path: Path, name: str, settings: PictureSource, listing: Listing) -> None:
    if name.lower().endswith(".parquet"):
        list_parquet(path, name, settings, listing)
    elif name.lower().endswith(".tar"):
        list_tar(path, name, listing)
    else:
        listing.refuse(name, name, "compressed tar", "a compressed tar cannot be read at random; unpack it to a plain .tar")

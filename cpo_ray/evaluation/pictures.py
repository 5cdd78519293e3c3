"""Pictures on the disk as sequences: each is read when it is asked for, so that nobody holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np

from cpo_ray.data.picture import PictureError, decode
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.domain import Picture

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})


class StoredPictures(Sequence[Picture]):
    """So many pictures, (H, W, 3) uint8 sRGB. `read` gets the places of some of them and returns their encoded bytes.

    A slice is a list of pictures. Raises PictureError, which names the place, for bytes that are no picture.
    """

    def __init__(self, count: int, read: Callable[[Sequence[int]], Sequence[bytes]]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Picture: ...

    @overload
    def __getitem__(self, place: slice) -> list[Picture]: ...

    def __getitem__(self, place: int | slice) -> Picture | list[Picture]:
        if isinstance(place, slice):
            places = range(self._count)[place]
            return [_decoded(data, at) for data, at in zip(self._read(places), places, strict=True)] if places else []
        at = range(self._count)[place]
        return _decoded(self._read([at])[0], at)


def in_files(files: Sequence[Path]) -> StoredPictures:
    """The pictures of files, in their order."""
    return StoredPictures(len(files), partial(_bytes_of, tuple(files)))


def in_folder(folder: Path) -> StoredPictures:
    """All pictures below a folder, by name."""
    return in_files(sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS))


def in_dataset(dataset: AnnotatedDataset, most_negatives: int) -> StoredPictures:
    """The annotated pictures with at most so many negative attributes."""
    ids = [name for name in dataset.ids if len(dataset.labels(name).negative_ids) <= most_negatives]
    return StoredPictures(len(ids), lambda places: dataset.images([ids[at] for at in places]))


def _bytes_of(files: tuple[Path, ...], places: Sequence[int]) -> list[bytes]:
    return [files[at].read_bytes() for at in places]


def _decoded(data: bytes, at: int) -> Picture:
    try:
        return np.asarray(decode(data))
    except PictureError as error:
        raise PictureError(f"picture {at}: {error}") from None

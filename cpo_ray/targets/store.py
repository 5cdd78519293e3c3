"""Target shards on disk: immutable safetensors files, addressed by everything that decides their bytes.

    <folder>/<fingerprint>/about.json                       what the fingerprint stands for
    <folder>/.locks/<fingerprint>                           locked while a run uses the shards
    <folder>/<fingerprint>/<shard digest>.safetensors       the tensors of `schema.TARGET_TENSORS` for a list of items

    <folder>/<fingerprint>/damaged/                         damaged shards, which a reader wants to be computed again

An intact shard is never computed again. A live, a cached, a resumed and a swept run differ in nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cpo_ray.core.files import write_bytes, write_json
from cpo_ray.core.locks import locked
from cpo_ray.core.plan import Item
from cpo_ray.core.schema import SCHEMA_VERSION

Kind = Literal["supervised", "reference", "expert"]
Items = tuple[Item, ...]

# safetensors writes its metadata in the order of a hash map, which differs between processes.
# With everything under one key, equal shards are equal files.
_METADATA_KEY = "cpo_ray"
_DAMAGED = "damaged"


class TargetStoreError(ValueError):
    """A shard cannot be written, or a file is not the expected shard; one sentence says which."""


@dataclass(frozen=True)
class FrozenInputs:
    """All that changes a shard's bytes beside its items; never ω, β or the loss.

    base: digest of a local folder's weights, or hub id and revision. adapter: digest of the expert's weights.
    texts: the version of the prompt template, and the condition mixture where the texts are drawn from one.
    flow: how a rectified-flow family draws times and is told its text and guidance.
    pictures: how they are brought to size; None for the centre of a square. pairs: digest of which picture is paired with which.
    """

    kind: Kind
    base: str
    adapter: str | None
    dataset: str
    hierarchy: str
    texts: str
    resolution: int
    dtype: str
    flow: str
    seed: int
    forward_batch: int | None
    schema_version: int = SCHEMA_VERSION
    pictures: str | None = None
    pairs: str | None = None

    def described(self) -> dict[str, Any]:
        """The content of about.json and of the fingerprint."""
        # Shards made before these were configurable keep their address.
        return {name: value for name, value in asdict(self).items() if name not in ("pictures", "pairs") or value is not None}


def frozen_fingerprint(inputs: FrozenInputs) -> str:
    """Return 32 hexadecimal digits that change with any of the inputs."""
    return _digest(json.dumps(inputs.described(), sort_keys=True))


def text_digest(text: str) -> str:
    """Return 32 hexadecimal digits of a text."""
    return _digest(text)


def content_digest(path: Path, suffixes: tuple[str, ...] = (".safetensors",)) -> str:
    """Return the digest of a file, or of the names and contents of a folder's files with one of the suffixes.

    Raises TargetStoreError if there is nothing to digest.
    """
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
    if not files:
        raise TargetStoreError(
            f"there is no {' or '.join(suffixes)} file at {path}; give the folder or file that holds the weights"
        )
    # The name of a single file, or of the folder, is not part of its contents.
    names = [""] if path.is_file() else [file.relative_to(folder).as_posix() for file in files]
    return _digest(*names, *(_file_digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=1024)
def _file_digest(file: Path, size: int, modified: int) -> str:
    """Return the digest of a file's bytes, which are read again only if its size or time changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class TargetStore:
    """The shards of one fingerprint. Small and picklable; any number of processes may read and write at once."""

    folder: Path
    fingerprint: str

    @property
    def root(self) -> Path:
        """The folder of this fingerprint."""
        return self.folder / self.fingerprint

    def path(self, items: Sequence[Item]) -> Path:
        """Return the path of the shard with these items, in this order, whether it exists or not."""
        return self.root / f"{_digest(self.fingerprint, _items_json(items))}.safetensors"

    def missing(self, shards: Iterable[Items]) -> list[Items]:
        """Return the shards that do not exist yet, in the given order."""
        return [items for items in shards if not self.path(items).exists()]

    def failure_marker(self, run_id: str) -> Path:
        """Return the file by which a run's producer tells waiting readers that it has failed, and why."""
        return self.root / f"failed-{run_id}.json"

    @property
    def lock_file(self) -> Path:
        """The file that every user of the shards locks and touches. It lies outside of `root`, which may be deleted."""
        return self.folder / ".locks" / self.fingerprint

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Protect the shards from being pruned while the block runs. Any number of processes may. A dead
        process releases them.
        """
        with locked(self.lock_file, shared=True):
            os.utime(self.lock_file)  # the time of the last use
            yield

    def write_about(self, inputs: FrozenInputs) -> None:
        """Write down for people what the fingerprint stands for."""
        assert frozen_fingerprint(inputs) == self.fingerprint
        write_json(self.root / "about.json", inputs.described())

    def write(self, items: Sequence[Item], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Write a whole shard or nothing. The same arguments give the same bytes. `metadata` holds plain JSON values.

        An intact shard that another process has written meanwhile stays. Raises DiskFullError on a full disk.
        """
        path = self.path(items)
        if path.exists() and self.problem(path) is None:
            return path
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {
            **metadata,
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "items": [list(item) for item in items],
            "checksum": _checksum(tensors),
        }
        write_bytes(path, save(tensors, {_METADATA_KEY: json.dumps(header, sort_keys=True)}))
        return path

    def open(self, items: Sequence[Item], *, verify: bool = False) -> safe_open:
        """Open the shard of these items without reading it, for callers that need some rows; with `verify` compare the checksum.

        Raises TargetStoreError if the file is missing, damaged, or holds something else.
        """
        path = self.path(items)
        shard, header = _open(path)
        if header["fingerprint"] != self.fingerprint or header["items"] != [list(item) for item in items]:
            raise TargetStoreError(f"{path} holds other items than its name says; delete it, so that it is computed again")
        if verify:
            _compare(shard, header, path)
        return shard

    def read(self, items: Sequence[Item], *, verify: bool = False) -> dict[str, Tensor]:
        """Return all tensors of the shard of these items; with `verify` the checksum is compared. Raises as `open` does."""
        return _tensors(self.open(items, verify=verify))

    def verify(self, path: Path) -> None:
        """Raise TargetStoreError unless the file is a complete shard, under its right name, with the bytes that were written."""
        shard, header = _open(path)
        _compare(shard, header, path)
        if path.name != self.path([Item(*item) for item in header["items"]]).name:
            raise TargetStoreError(f"{path} does not belong to this store; delete it or move it back where it was")

    def problem(self, path: Path) -> str | None:
        """Return what is wrong with a shard, or None."""
        try:
            self.verify(path)
        except TargetStoreError as error:
            return str(error)
        return None

    def set_aside(self, path: Path, seen: os.stat_result) -> bool:
        """Move a damaged shard into `damaged/`, so that its producer computes it again.

        Return False, and do nothing, if the file is no longer the one that was `seen`: another process was faster.
        """
        aside = self.root / _DAMAGED / path.name
        aside.parent.mkdir(exist_ok=True)
        try:
            if path.stat().st_ino != seen.st_ino:
                return False
            path.replace(aside)
        except FileNotFoundError:
            return False
        return True

    def damaged(self, shards: Iterable[Items]) -> list[Path]:
        """Return the files of these shards that readers have set aside."""
        aside = sorted((self.root / _DAMAGED).glob("*"))
        names = {self.path(items).name for items in shards} if aside else ()
        return [path for path in aside if path.name in names]


def _open(path: Path) -> tuple[safe_open, dict[str, Any]]:
    try:
        shard = safe_open(path, framework="pt")
        header = json.loads((shard.metadata() or {})[_METADATA_KEY])
        version, _ = header["schema_version"], [header[key] for key in ("fingerprint", "checksum")]
        header["items"] = [list(Item(*item)) for item in header["items"]]
    except FileNotFoundError:
        raise TargetStoreError(f"there is no shard at {path}; produce the targets of this run first") from None
    except SafetensorError as error:
        raise TargetStoreError(f"{path} is damaged or half-written ({error}); delete it, so that it is computed again") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise TargetStoreError(f"{path} is a safetensors file, but no target shard; move it out of the target store") from None
    if version != SCHEMA_VERSION:
        raise TargetStoreError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; delete it, so that it is computed again"
        )
    return shard, header


def _tensors(shard: safe_open) -> dict[str, Tensor]:
    names: list[str] = shard.keys()
    return {name: shard.get_tensor(name) for name in names}


def _compare(shard: safe_open, header: Mapping[str, Any], path: Path) -> None:
    """Read the whole shard. Raises TargetStoreError unless its checksum is the one in its header."""
    if _checksum(_tensors(shard)) != header["checksum"]:
        raise TargetStoreError(f"the tensors of {path} are not those that were written; delete it, so that it is computed again")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the blake2b digest of the names, dtypes, shapes and bytes of contiguous tensors."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        hashed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hashed.update(tensor.flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _items_json(items: Sequence[Item]) -> str:
    return json.dumps([list(item) for item in items])


def _digest(*parts: str) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

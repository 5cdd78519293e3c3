"""Target shards on disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cpo_ray.core.files import DiskFullError
from cpo_ray.core.plan import Item
from cpo_ray.targets import store as store_module
from cpo_ray.targets.store import FrozenInputs, TargetStore, TargetStoreError, content_digest, frozen_fingerprint

INPUTS = FrozenInputs(
    kind="expert",
    base="weights",
    adapter="adapter",
    dataset="data",
    hierarchy="tree",
    texts="template 1",
    resolution=64,
    dtype="float32",
    flow="logit-normal",
    seed=3,
    forward_batch=None,
)
ITEMS = (Item("a", 0), Item("b", 0), Item("a", 1))


def tensors() -> dict[str, Tensor]:
    return {
        "x_t": torch.arange(12, dtype=torch.float16).reshape(3, 2, 2),
        "timestep": torch.tensor([1, 500, 999]),
        "reference": torch.linspace(-1, 1, 12).reshape(3, 2, 2).transpose(1, 2),  # not contiguous
    }


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    return TargetStore(tmp_path, frozen_fingerprint(INPUTS))


def test_every_input_changes_the_fingerprint() -> None:
    others: dict[str, Any] = {
        "kind": "supervised", "base": "x", "adapter": None, "dataset": "x", "hierarchy": "x", "texts": "x", "resolution": 128,
        "dtype": "bfloat16", "flow": "x", "seed": 4, "forward_batch": 8, "schema_version": 3, "pictures": "aspect",
        "pairs": "x",
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(FrozenInputs)}
    changed = {frozen_fingerprint(dataclasses.replace(INPUTS, **{name: value})) for name, value in others.items()}
    assert len(changed | {frozen_fingerprint(INPUTS)}) == 15


def test_a_folders_digest_is_of_names_and_contents_and_not_of_times_or_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "unet").mkdir(parents=True)
        (tmp_path / place / "unet" / "weights.safetensors").write_bytes(b"1234")
        (tmp_path / place / "notes.md").write_text(place)
    os.utime(tmp_path / "there" / "unet" / "weights.safetensors", (1, 1))
    first = content_digest(tmp_path / "here")
    assert content_digest(tmp_path / "there") == first
    (tmp_path / "there" / "unet" / "weights.safetensors").write_bytes(b"1235")
    assert content_digest(tmp_path / "there") != first
    (tmp_path / "here" / "unet").rename(tmp_path / "here" / "vae")
    assert content_digest(tmp_path / "here") != first
    with pytest.raises(TargetStoreError, match=r"no \.safetensors file at .*nowhere"):
        content_digest(tmp_path / "nowhere")


def test_a_shard_comes_back_as_it_was_written_and_is_listed_as_missing_until_then(store: TargetStore) -> None:
    other = (Item("c", 0),)
    assert store.missing([ITEMS, other]) == [ITEMS, other]
    path = store.write(ITEMS, tensors(), {"dropped_attributes": 2})
    assert store.missing([ITEMS, other]) == [other]
    read = store.read(ITEMS, verify=True)
    assert read.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert [file.name for file in store.root.iterdir()] == [path.name]


def test_the_same_shard_is_the_same_file(store: TargetStore) -> None:
    # safetensors orders several metadata entries by chance; six writes in one process would show it.
    written = set()
    for _ in range(6):
        path = store.write(ITEMS, tensors(), {"a": 1, "b": 2, "c": 3})
        written.add(path.read_bytes())
        path.unlink()
    assert len(written) == 1


def test_an_intact_shard_is_never_replaced_and_a_damaged_one_is(store: TargetStore) -> None:
    path = store.write(ITEMS, tensors(), {})
    before = path.stat().st_ino
    store.write(ITEMS, tensors(), {})
    assert path.stat().st_ino == before
    path.write_bytes(path.read_bytes()[:-1])
    store.write(ITEMS, tensors(), {})
    assert store.problem(path) is None


def test_items_in_another_order_or_another_fingerprint_are_another_shard(store: TargetStore) -> None:
    paths = {store.path(ITEMS), store.path(ITEMS[::-1]), store.path(ITEMS[:2]), TargetStore(store.folder, "0" * 32).path(ITEMS)}
    assert len(paths) == 4


def test_about_says_what_the_fingerprint_stands_for(store: TargetStore) -> None:
    store.write_about(INPUTS)
    about = json.loads((store.root / "about.json").read_text())
    assert FrozenInputs(**about) == INPUTS and "pictures" not in about


def test_every_kind_of_bad_file_has_its_sentence(store: TargetStore) -> None:
    with pytest.raises(TargetStoreError, match="there is no shard at"):
        store.read(ITEMS)
    path = store.write(ITEMS, tensors(), {})
    whole = path.read_bytes()
    for part in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises(TargetStoreError, match="damaged or half-written"):
            store.read(ITEMS)
    save_file(tensors() | {"reference": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(TargetStoreError, match="no target shard"):
        store.read(ITEMS)
    save_file({"x": torch.zeros(1)}, path, {"cpo_ray": "[]"})
    with pytest.raises(TargetStoreError, match="no target shard"):
        store.read(ITEMS)
    path.write_bytes(whole)
    path.rename(store.path(ITEMS[:2]))
    with pytest.raises(TargetStoreError, match="holds other items than its name says"):
        store.read(ITEMS[:2])
    with pytest.raises(TargetStoreError, match="does not belong to this store"):
        store.verify(store.path(ITEMS[:2]))


def test_one_flipped_bit_is_found_by_its_checksum(store: TargetStore) -> None:
    path = store.write(ITEMS, tensors(), {})
    store.verify(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    store.read(ITEMS)
    with pytest.raises(TargetStoreError, match="not those that were written"):
        store.read(ITEMS, verify=True)


def test_a_shard_of_another_schema_version_is_refused(store: TargetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "SCHEMA_VERSION", 99)
        store.write(ITEMS, tensors(), {})
    with pytest.raises(TargetStoreError, match="has schema version 99, this program reads 2"):
        store.read(ITEMS)


def test_a_full_disk_leaves_nothing_behind(store: TargetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"disk of .* is full; free some space"):
        store.write(ITEMS, tensors(), {})
    assert list(store.root.iterdir()) == []

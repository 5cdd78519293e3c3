"""Damaged target shards are never trained on: the reader finds them, and the producer computes them again. Without Ray."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cpo_ray.config import Targets
from cpo_ray.core import files
from cpo_ray.core.plan import Batch, Item
from cpo_ray.targets import producer as producer_module
from cpo_ray.targets import store as store_module
from cpo_ray.targets.producer import BackgroundProducer, ProductionError, ProductionReport
from cpo_ray.targets.reader import TargetReader, TargetsUnavailable
from cpo_ray.targets.store import Items, TargetStore, TargetStoreError

SHARDS: list[Items] = [(Item(f"picture-{number}", 0), Item(f"picture-{number}", 1)) for number in range(3)]


def compute(store: TargetStore, items: Items) -> Path:
    number = float(items[0].sample_id[-1])
    tensors = {"x_t": torch.full((2, 4, 8, 8), number), "timestep": torch.tensor([1, 2]), "prompt_index": torch.tensor([0, 0])}
    return store.write(items, tensors | {"text.words": torch.ones(1, 3)}, {})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 64
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def read(reader: TargetReader, number: int) -> float:
    batch = reader.batch(Batch((SHARDS[number][0],), (1.0,)))
    (value,) = batch.pictures[0].x_t.unique().tolist()
    return float(value)


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    return TargetStore(tmp_path, "0" * 32)


@pytest.fixture
def settings(store: TargetStore, monkeypatch: pytest.MonkeyPatch) -> Targets:
    """Settings of a producer that writes what `compute` computes, without Ray."""

    def produce(
        spec: object, shards: Sequence[Items], targets: Targets, on_progress: object, stop: Callable[[], bool]
    ) -> ProductionReport:
        missing = store.missing(shards)
        for items in missing:
            compute(store, items)
        return ProductionReport(len(missing), len(shards) - len(missing), 2 * len(missing), 0, 0.0, 0)

    monkeypatch.setattr(producer_module, "produce", produce)
    monkeypatch.setattr(producer_module, "target_store", lambda spec, folder: store)
    monkeypatch.setattr(producer_module, "LOOK_EVERY_SECONDS", 0.02)
    return Targets(folder=store.folder)


def begin(settings: Targets) -> BackgroundProducer:
    spec: Any = None
    return BackgroundProducer(spec, SHARDS, settings, "run")


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_shard_is_computed_again_while_the_reader_waits(
    damage: Callable[[Path], None], store: TargetStore, settings: Targets
) -> None:
    whole = [compute(store, items).read_bytes() for items in SHARDS]
    damage(store.path(SHARDS[1]))
    with begin(settings) as producer:
        assert producer.join().already_there == 3, "the damage is found by whoever reads"
        reader = TargetReader(store, SHARDS, 30, "run")
        assert [read(reader, number) for number in range(3)] == [0, 1, 2]
        producer.stop()
        report = producer.join()
    assert (report.shards_written, report.already_there, report.damaged) == (1, 3, 1)
    assert [store.path(items).read_bytes() for items in SHARDS] == whole
    assert store.damaged(SHARDS) == []
    assert {path.name for path in store.root.iterdir()} == {*(store.path(items).name for items in SHARDS), "damaged"}


def test_each_shard_is_verified_once_in_a_process(store: TargetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for items in SHARDS:
        compute(store, items)
    counted: list[Path] = []
    compare = store_module._compare

    def count(shard: Any, header: Mapping[str, Any], path: Path) -> None:
        counted.append(path)
        compare(shard, header, path)

    monkeypatch.setattr(store_module, "_compare", count)
    monkeypatch.setattr("cpo_ray.targets.reader._OPEN_SHARDS", 1)
    reader = TargetReader(store, SHARDS, 1, "run")
    assert [read(reader, number) for number in (0, 1, 2, 0, 1, 2)] == [0, 1, 2, 0, 1, 2]
    assert counted == [store.path(items) for items in SHARDS]


def test_a_shard_that_somebody_else_has_just_replaced_stays(store: TargetStore) -> None:
    path = compute(store, SHARDS[0])
    cut(path)
    seen = path.stat()
    path.rename(path.with_suffix(".old"))
    compute(store, SHARDS[0])
    assert not store.set_aside(path, seen) and store.problem(path) is None


def test_a_disk_that_damages_every_copy_ends_the_wait(store: TargetStore) -> None:
    path = compute(store, SHARDS[0])
    flip(path)
    bad = path.with_suffix(".copy")
    shutil.copyfile(path, bad)
    done = threading.Event()

    def damage_again() -> None:
        while not done.wait(0.01):
            if not path.exists():
                shutil.copyfile(bad, path.with_suffix(".new"))
                os.replace(path.with_suffix(".new"), path)

    thread = threading.Thread(target=damage_again)
    thread.start()
    with pytest.raises(TargetStoreError, match="not those that were written"):
        read(TargetReader(store, SHARDS, 30, "run"), 0)
    done.set()
    thread.join()


def test_readers_learn_of_a_full_disk_although_nothing_can_be_written_on_it(
    store: TargetStore, settings: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise files.DiskFullError(f"the disk of {path.parent} is full")

    def produce(*_: object) -> None:
        monkeypatch.setattr(producer_module, "write_json", full)
        raise ProductionError("the disk is full")

    monkeypatch.setattr(producer_module, "produce", produce)
    with begin(settings) as producer:
        with pytest.raises(ProductionError, match="the disk is full"):
            producer.join()
        with pytest.raises(TargetsUnavailable, match=f"the disk of {store.folder} is full"):
            read(TargetReader(store, SHARDS, 30, "run"), 0)

"""The target store as a tool, on real shards: what is there, what is damaged, what may go while a run holds it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cpo_ray.core.plan import Item
from cpo_ray.targets import maintenance as target_tool
from cpo_ray.targets.store import FrozenInputs, TargetStore, TargetStoreError, frozen_fingerprint


def fill(folder: Path, seed: int, shards: int) -> TargetStore:
    texts: dict[str, Any] = dict.fromkeys(("base", "adapter", "dataset", "hierarchy", "texts", "flow"), "abc")
    inputs = FrozenInputs(kind="expert", resolution=64, dtype="float32", seed=seed, forward_batch=None, **texts)
    store = TargetStore(folder, frozen_fingerprint(inputs))
    store.write_about(inputs)
    for number in range(shards):
        store.write((Item(f"picture-{number}", 0),), {"x_t": torch.full((1, 4), float(number))}, {})
    return store


def age(store: TargetStore, days: float) -> None:
    past = time.time() - days * target_tool.DAY
    for path in (*store.root.iterdir(), store.lock_file):
        if path.exists():
            os.utime(path, (past, past))


def test_a_list_says_for_whom_the_shards_were_computed(tmp_path: Path) -> None:
    old, new = fill(tmp_path, seed=1, shards=2), fill(tmp_path, seed=2, shards=1)
    age(old, 40)
    first, second = target_tool.stored(tmp_path)
    assert (first.store, second.store) == (new, old)
    assert second.shards == 2 and second.bytes == sum(file.stat().st_size for file in old.root.glob("*.safetensors"))
    assert "expert, base abc, expert abc, data abc, 64 px, seed 1; 2 shards" in second.sentence()
    assert "unused for 40.0 days" in second.sentence()
    for text in ('{"of": "another version"}', '{"kind": "exp'):
        (old.root / "about.json").write_text(text)
        assert "unknown: about.json is missing, damaged or of another version" in target_tool.stored(tmp_path)[1].sentence()
    assert target_tool.stored(tmp_path / "nothing") == []


def test_damage_is_found_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path, seed=1, shards=3)
    target_tool.show_verification(tmp_path)
    assert "3 shards" in capsys.readouterr().out
    damaged = sorted(store.root.glob("*.safetensors"))[1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1  # one bit of the last number
    damaged.write_bytes(content)
    found = dict(target_tool.verify(tmp_path))
    assert [path for path, problem in found.items() if problem] == [damaged]
    with pytest.raises(TargetStoreError, match="1 of 3 shards"):
        target_tool.show_verification(tmp_path)
    assert "are not those that were written; delete it" in capsys.readouterr().out


def test_pruning_names_first_and_spares_what_is_new_or_held(tmp_path: Path) -> None:
    old, new, held = (fill(tmp_path, seed=seed, shards=1) for seed in (1, 2, 3))
    with held.in_use():  # a lock of the kernel, to which it is the same whether the other one is another process
        age(old, 40)
        age(held, 40)
        assert [targets.store for targets in target_tool.prune(tmp_path, 30, delete=False)] == [old]
        assert old.root.exists()
        assert [targets.in_use for targets in target_tool.stored(tmp_path) if targets.store == held] == [True]
        assert [targets.store for targets in target_tool.prune(tmp_path, 30, delete=True)] == [old]
        assert not old.root.exists() and new.root.exists() and held.root.exists()
    assert [targets.store for targets in target_tool.prune(tmp_path, 30, delete=True)] == [held]  # its holder let go


def test_use_counts_from_the_last_run_and_not_from_the_writing(tmp_path: Path) -> None:
    store = fill(tmp_path, seed=1, shards=1)
    with store.in_use():
        pass
    age(store, 40)
    with store.in_use(), store.in_use():  # any number of runs
        pass
    assert target_tool.prune(tmp_path, 30, delete=True) == []

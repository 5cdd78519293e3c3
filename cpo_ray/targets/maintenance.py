"""The target store as a tool: what is there, whether it is whole, and what can go.

Safe beside trainings: shards are only read, except by `prune`, which leaves every set of shards alone that a run holds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cpo_ray.core.files import DamagedFileError, read_json
from cpo_ray.core.locks import locked
from cpo_ray.targets.store import FrozenInputs, TargetStore, TargetStoreError

DAY = 86_400.0


@dataclass(frozen=True)
class StoredTargets:
    """The shards of one fingerprint. `inputs` is None where about.json is missing, damaged or of another version."""

    store: TargetStore
    inputs: FrozenInputs | None
    shards: int
    bytes: int
    days_unused: float
    in_use: bool

    def sentence(self) -> str:
        """One line for people; long digests are cut."""
        size = f"{self.shards} shards, {self.bytes / 1e9:.2f} GB"
        age = "in use" if self.in_use else f"unused for {self.days_unused:.1f} days"
        if self.inputs is None:
            return f"{self.store.fingerprint[:12]}  unknown: about.json is missing, damaged or of another version; {size}; {age}"
        i = self.inputs
        base, _, revision = i.base.partition("@")
        expert = f"expert {i.adapter[:12]}" if i.adapter else "no expert"
        where = f"base {base[:24]}" + (f"@{revision[:12]}" if revision not in ("", "None") else "")
        what = f"{i.kind}, {where}, {expert}, data {i.dataset[:12]}, {i.resolution} px, seed {i.seed}"
        return f"{self.store.fingerprint[:12]}  {what}; {size}; {age}"


def stored(folder: Path) -> list[StoredTargets]:
    """Everything in a target store, the latest used first."""
    found = [_stored(TargetStore(folder.absolute(), path.name)) for path in _roots(folder)]
    return sorted(found, key=lambda targets: targets.days_unused)


def verify(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Every shard of a store with what is wrong with it, or None; each is read whole and compared with its checksum."""
    for root in _roots(folder):
        store = TargetStore(folder.absolute(), root.name)
        for path in sorted(root.glob("*.safetensors")):
            yield path, store.problem(path)


def prune(folder: Path, unused_days: float, *, delete: bool) -> list[StoredTargets]:
    """Return what no run has used for so many days, removed with `delete`; what a run holds is never among it."""
    old = [targets for targets in stored(folder) if not targets.in_use and targets.days_unused >= unused_days]
    return [targets for targets in old if not delete or _delete(targets.store)]


def _roots(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir())


def _stored(store: TargetStore) -> StoredTargets:
    files = [path.stat() for path in store.root.glob("*.safetensors")]
    lock, about = store.lock_file, store.root / "about.json"
    used = max([file.st_mtime for file in files] + [lock.stat().st_mtime if lock.exists() else 0.0])
    try:
        inputs = FrozenInputs(**read_json(about))
    except (FileNotFoundError, DamagedFileError, TypeError):
        inputs = None
    return StoredTargets(
        store, inputs, len(files), sum(file.st_size for file in files), (time.time() - used) / DAY, _is_held(lock)
    )


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with locked(lock, wait=False):
            return False
    except BlockingIOError:
        return True


def _delete(store: TargetStore) -> bool:
    """Return whether the shards could be removed; a run that begins meanwhile waits, and finds them gone."""
    try:
        with locked(store.lock_file, wait=False):
            shutil.rmtree(store.root)
    except BlockingIOError:
        return False
    return True


def show(folder: Path) -> None:
    """Print a line for each set of shards."""
    found = stored(folder)
    for targets in found:
        print(targets.sentence())
    print(f"{len(found)} sets of shards, {sum(targets.bytes for targets in found) / 1e9:.2f} GB in {folder.absolute()}")


def show_verification(folder: Path) -> None:
    """Print what is wrong. Raises TargetStoreError where something is, so that the job's exit code tells."""
    checked = list(verify(folder))
    wrong = [problem for _, problem in checked if problem]
    for problem in wrong:
        print(problem)
    if wrong:
        raise TargetStoreError(f"{len(wrong)} of {len(checked)} shards in {folder.absolute()} are damaged or incomplete")
    print(f"{len(checked)} shards in {folder.absolute()} are whole")


def show_pruning(folder: Path, unused_days: float, *, delete: bool) -> None:
    """Print what was pruned, or would be."""
    found = prune(folder, unused_days, delete=delete)
    for targets in found:
        print(targets.sentence())
    size = sum(targets.bytes for targets in found) / 1e9
    print(f"{size:.2f} GB {'are free again' if delete else 'would be free again; --delete removes them'}")

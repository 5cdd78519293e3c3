"""A record of what was trained, so that a resume can be checked by counting: one file per rank and checkpoint.

The file ledger/step-<first>-<last>-rank<rank>.jsonl below a training's output has a line such as {"step": 3, "sample_id":
"picture-7", "draw": 0} for each item that the rank trained in steps first to last - 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cpo_ray.core.files import read_log, write_log
from cpo_ray.core.plan import Item, Plan

LedgerEntry = tuple[int, Item]

_SEGMENT = re.compile(r"step-(\d+)-(\d+)-rank\d+\.jsonl")


def write_segment(output: Path, first: int, last: int, rank: int, entries: Sequence[LedgerEntry]) -> Path:
    """Write what a rank trained in steps first to last - 1, completely or not at all."""
    path = output / "ledger" / f"step-{first}-{last}-rank{rank}.jsonl"
    if entries:  # an empty segment is one that was cut
        write_log(path, ({"step": step, **item._asdict()} for step, item in entries))
    return path


def drop_after(output: Path, step: int) -> None:
    """Remove the segments with steps from `step` on. Their checkpoint was never committed, so they are trained again."""
    for path, last in _segments(output):
        if last > step:
            path.unlink()


def read_ledger(output: Path) -> list[LedgerEntry]:
    """Return all (step, item) that were trained, in order."""
    records = (record for path, _ in _segments(output) for record in read_log(path))
    return sorted((record["step"], Item(record["sample_id"], record["draw"])) for record in records)


def whole_until(output: Path) -> int | None:
    """Return the step from which on segments were cut, empty or with a torn last line; None if there are no such segments."""
    return min((first for first, _, _ in _cut(output)), default=None)


def ledger_problem(plan: Plan, output: Path) -> str | None:
    """Return what `check_ledger` says, or the segments that were cut if all that it misses may have stood in them."""
    entries, cut = read_ledger(output), _cut(output)
    problem = check_ledger(plan, entries)
    if problem is None or not cut:
        return problem
    unknown = {step for first, last, _ in cut for step in range(first, last)}
    planned = Counter((step, item) for step in range(plan.steps) for item in plan.step(step).planned)
    missing, surplus = planned - Counter(entries), Counter(entries) - planned
    if surplus or any(step not in unknown for step, _ in missing):
        return problem
    return (
        f"{', '.join(str(path) for _, _, path in cut)} was cut after it was written, so nobody can tell what was trained in "
        f"{len({step for step, _ in missing})} steps; in all others each planned item was trained as planned"
    )


def check_ledger(plan: Plan, entries: Iterable[LedgerEntry]) -> str | None:
    """Return None if each planned item was trained in its step exactly as often as planned, else a sentence that says what
    differs.
    """
    planned = Counter((step, item) for step in range(plan.steps) for item in plan.step(step).planned)
    trained = Counter(entries)
    missing, surplus = planned - trained, trained - planned
    if not missing and not surplus:
        return None
    example = min(missing or surplus)
    return (
        f"the ledger differs from the plan: of {planned.total()} planned items {missing.total()} were not trained and "
        f"{surplus.total()} were trained in excess, "
        f"such as {example[1].sample_id!r} draw {example[1].draw} in step {example[0]}; "
        "do not trust this training, start it again under another name"
    )


def _cut(output: Path) -> list[tuple[int, int, Path]]:
    """Return the segments that were cut, with their first step and the step after their last."""
    cut = [(path, last) for path, last in _segments(output) if not path.read_bytes().endswith(b"\n")]
    return [(int(path.name.split("-")[1]), last, path) for path, last in cut]


def _segments(output: Path) -> list[tuple[Path, int]]:
    """Return the segments with the step after their last."""
    matches = ((path, _SEGMENT.fullmatch(path.name)) for path in (output / "ledger").glob("*.jsonl"))
    return sorted((path, int(match[2])) for path, match in matches if match)

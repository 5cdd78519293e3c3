"""The processes that train together in other tests: none of them is ever waited for in vain."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from support import ranks
from support.ranks import Ranks
from torch import distributed


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Ranks]:
    made = Ranks(2, tmp_path / "ranks")
    yield made
    made.close()


def _sum(number: int) -> tuple[int, int]:
    total = torch.tensor(number + distributed.get_rank())
    distributed.all_reduce(total)
    return int(total), os.getpid()


def _fail(both: bool) -> None:
    if both or distributed.get_rank() == 0:
        raise ValueError("as it must")
    distributed.barrier()


def _end() -> None:
    if distributed.get_rank() == 0:
        os._exit(3)
    distributed.barrier()


def _wait() -> None:
    if distributed.get_rank() == 0:
        time.sleep(600)
    distributed.barrier()


def test_ranks_that_fail_end_or_wait_are_told_of_and_replaced(two: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one rank alone fails or ends, the other one waits for it in a collective."""
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.5)
    (total, first), (other, second) = two(_sum, 3)
    assert total == other == 3 + 4
    with pytest.raises(ValueError, match="as it must"):
        two(_fail, True)
    assert [pid for _, pid in two(_sum, 3)] == [first, second], "both have answered, so both are as good as before"
    started = time.monotonic()
    with pytest.raises((ValueError, RuntimeError), match=r"as it must|Connection closed"):
        two(_fail, False)
    assert not psutil.pid_exists(first) and not psutil.pid_exists(second)
    with pytest.raises(RuntimeError, match=r"the process of rank 0 ended|Connection closed"):
        two(_end)
    assert two(_sum, 3)[0][0] == 7
    monkeypatch.setattr(ranks, "CALL_SECONDS", 1.0)
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] did not answer"):
        two(_wait)
    assert time.monotonic() - started < 100

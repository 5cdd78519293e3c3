"""Processes of their own that train together: DeepSpeed keeps state in its process, and a process starts for seconds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import distributed


class Ranks:
    """A gloo group whose processes stay until `close`, so that several tests share their start."""

    def __init__(self, world_size: int, folder: Path) -> None:
        folder.mkdir()
        context = multiprocessing.get_context("spawn")
        self._ranks = [
            ProcessPoolExecutor(1, context, initializer=_join, initargs=(rank, world_size, folder)) for rank in range(world_size)
        ]

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(*arguments)` returns on each rank."""
        calls = [rank.submit(function, *arguments) for rank in self._ranks]
        return [call.result(timeout=900) for call in calls]

    def close(self) -> None:
        for wait in (False, True):  # all end at once
            for rank in self._ranks:
                rank.shutdown(wait)


def _join(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)

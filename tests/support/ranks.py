"""Processes of their own that train together: DeepSpeed keeps state in its process, and a process starts for seconds."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed

#: What one call may take, and how long a rank is waited for when another one has failed.
CALL_SECONDS, GRACE_SECONDS = 600.0, 60.0
SPAWN = multiprocessing.get_context("spawn")


class Ranks:
    """A gloo group whose processes stay until `close`, so that several tests share their start.

    A rank that waits in a collective for one that failed would wait for half an hour: then all are killed, and the next call
    starts a new group.
    """

    def __init__(self, world_size: int, folder: Path) -> None:
        folder.mkdir()
        self._world_size, self._folder, self._started = world_size, folder, 0
        self._ranks: list[tuple[Any, Connection]] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what `function(*arguments)` returns on each rank; raises what it raises."""
        if not self._ranks:
            self._start()
        try:
            for _, connection in self._ranks:
                connection.send((function, arguments))
            answers = self._answers()
        except BaseException:  # a test's time limit among them
            self.close()
            raise
        failures = [answer for failed, answer in answers if failed]
        if failures:
            raise failures[0]
        return [answer for _, answer in answers]

    def close(self) -> None:
        """Kill them: what they hold is of no use to anybody."""
        for process, connection in self._ranks:
            process.kill()
            connection.close()
        for process, _ in self._ranks:
            process.join(30)
        self._ranks = []

    def _start(self) -> None:
        self._started += 1
        rendezvous = f"file://{self._folder}/rendezvous-{self._started}"
        for rank in range(self._world_size):
            here, there = SPAWN.Pipe()
            process = SPAWN.Process(target=_serve, args=(there, rank, self._world_size, rendezvous), daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the connection
            self._ranks.append((process, here))

    def _answers(self) -> list[tuple[bool, Any]]:
        """(failed, value or exception) of each rank."""
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + CALL_SECONDS
        while open_ranks := {connection: n for n, (_, connection) in enumerate(self._ranks) if n not in answers}:
            ready = wait(list(open_ranks), max(0.0, end - time.monotonic()))
            failures = [answer for failed, answer in answers.values() if failed]
            if not ready:
                raise failures[0] if failures else TimeoutError(f"ranks {sorted(open_ranks.values())} did not answer")
            for connection, rank in open_ranks.items():
                if connection not in ready:
                    continue
                try:
                    answers[rank] = connection.recv()
                except EOFError:
                    raise failures[0] if failures else RuntimeError(f"the process of rank {rank} ended") from None
                if answers[rank][0]:
                    end = min(end, time.monotonic() + GRACE_SECONDS)
        return [answers[rank] for rank in range(self._world_size)]


def _serve(calls: Connection, rank: int, world_size: int, rendezvous: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    while True:
        function, arguments = calls.recv()
        try:
            answer = (False, function(*arguments))
        except Exception as error:  # it crosses to the test, which raises it
            error.add_note(f"on rank {rank}:\n{traceback.format_exc()}")
            answer = (True, error)
        calls.send(answer)


def _end_with_parent() -> None:
    """A rank in a collective does not see that its pipe has ended, and would outlive a test process that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

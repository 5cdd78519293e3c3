"""The driver's side of Ray: connecting, and telling how far things are."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable

import ray

from cpo_ray.checks import unsafe_flags
from cpo_ray.config import ConfigError


def connect() -> None:
    """Join the cluster that RAY_ADDRESS (or `ray job submit`) names; without one, start a Ray of this machine's own.

    Raises ConfigError when a Ray flag is set that lets data execute code.
    """
    if flags := unsafe_flags(os.environ):
        raise ConfigError(f"{', '.join(flags)} lets Ray Data run code that it reads from files; unset it")
    # Ray's own account of each execution says nothing that our progress lines do not.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        address = None if os.environ.get("RAY_ADDRESS") else "local"
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def progress(label: str) -> Callable[[int, int], None]:
    """Reports `done of total`: one line that is rewritten in a terminal, a plain line at every tenth elsewhere."""
    started, last = time.monotonic(), -1

    def report(done: int, total: int) -> None:
        nonlocal last
        left = (time.monotonic() - started) / max(done, 1) * (total - done)
        line = f"{label}: {done} of {total}, about {left:.0f} s left" if done < total else f"{label}: {total} of {total}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif (tenth := done * 10 // total) != last:
            last = tenth
            print(line, file=sys.stderr, flush=True)

    return report

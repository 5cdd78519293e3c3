"""Nothing that a test does or leaves behind can keep a run of the tests from ending.

A test has two limits, which pyproject.toml names. After `timeout` a signal fails it. That does nothing where Ray waits: `ray.get`
and `ray.wait` take the signal, drop its exception and go on waiting. So after `faulthandler_timeout` a thread of C prints where
every thread is and ends the process; clearing up after a test counts for both. Here is what these limits do not reach.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys
from contextlib import suppress

import psutil
import pytest

#: How long a process may take to end once its tests are done.
END_SECONDS = 60
PR_SET_CHILD_SUBREAPER = 36


def pytest_configure(config: pytest.Config) -> None:
    """What processes of ours leave behind when they are killed becomes ours, instead of living on and holding our output open."""
    if sys.platform == "linux" and not hasattr(config, "workerinput"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """A thread that nobody ends, or a farewell that waits for somebody, ends the process late but not never."""
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(END_SECONDS, file=sys.__stderr__, exit=True)
    if not hasattr(config, "workerinput"):
        _kill_leftovers()


def _kill_leftovers() -> None:
    """Also those whose parents are gone."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(process.cmdline()):  # it ends with us
                print(f"killed, since it was left behind: {' '.join(process.cmdline())[:200]}", file=sys.__stderr__)
                process.kill()

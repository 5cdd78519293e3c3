"""Ray's processes below the tests' own, to be killed as a lack of memory would."""

from __future__ import annotations

from contextlib import suppress

import psutil


def processes(name: str) -> list[psutil.Process]:
    """Return those with that name; one that ends while it is looked at is none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found

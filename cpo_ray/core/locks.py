"""Locks on files, which hold between processes, also of several machines on one NFS, and which die with their process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class LockError(RuntimeError):
    """A file cannot be locked; the message names it, the reason and what to do."""


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[BinaryIO]:
    """Hold a lock on a file, which is made where it is missing; alone, or with `shared` beside others that share it.

    Raises BlockingIOError if somebody else holds it and this is not to `wait`, and LockError where files cannot be locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # NFS wants a file that is open for reading to share it, and for writing to have it alone.
        file = path.open("a+b")
    except PermissionError as error:
        raise LockError(f"{path} cannot be opened for locking ({error.strerror}); make its folder writable") from None
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            raise LockError(
                f"{path} cannot be locked ({error.strerror}); use a disk that has file locks, such as NFS of version 4, "
                "or mount it with them"
            ) from None
        yield file

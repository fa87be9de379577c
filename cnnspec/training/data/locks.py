"""Create lock files that mark a folder or a process as in use. The system releases a lock when its process ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
"""The name of the lock file of a folder."""
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""The file of a lock is neither a link to another file nor a pipe, which would block."""
SUPPORTED = fcntl is not None
"""Whether the system has file locks. Without them, no file is ever locked."""


def acquire(path: Path, *, wait: bool = False, shared: bool = False) -> IO[str]:
    """Lock a file until the returned file object is closed.

    Args:
        path: The file, which is created if it does not exist.
        wait: Wait for another process that holds the lock.
        shared: Let other processes hold a shared lock as well.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: The file cannot be written.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666), "r+")
    try:
        relock(file, wait=wait, shared=shared)
    except BlockingIOError:
        file.close()
        raise
    return file


def relock(file: IO[str], *, wait: bool = False, shared: bool = False) -> None:
    """Lock an open file, or make its lock shared or exclusive.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise BlockingIOError(*error.args) from None


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file. A missing file is not locked."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | _FLAGS))
    except OSError:
        return False
    with file:
        if fcntl is None:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False

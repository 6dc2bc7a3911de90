"""The lock in a run's folder, held for as long as its driver lives: the kernel lets go of it, however that ends.

Machines that share the folder see each other's locks on some file systems (NFS 4) and not on others; some have none.
What stands beside it for those is the sign of life in the run's state, :mod:`training.records.run_folder`.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

LOCK_FILE = "driver.lock"

LockState = Literal["held", "free", "unknown"]

# Who only looks holds the lock for a moment, too.
_TRIES = 20
_NAP_SECONDS = 0.02

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


@contextlib.contextmanager
def hold_lock(folder: Path) -> Iterator[LockState]:
    """Hold the lock of a run's folder while the block runs; where the file system has no locks, hold nothing.

    Yields:
        In which state it was: free, or unknown where there are no locks.

    Raises:
        BlockingIOError: Another driver holds it.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _take(descriptor)
    finally:
        os.close(descriptor)


def look_at_lock(folder: Path) -> LockState:
    """Return whether a driver holds the lock, as far as this machine can see."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:  # there is none, or it is somebody else's
        return "unknown"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unknown"
    finally:
        os.close(descriptor)
    return "free"


def _take(descriptor: int) -> LockState:
    left = _TRIES
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left -= 1
            if not left:
                raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return "unknown"
        else:
            return "free"
        time.sleep(_NAP_SECONDS)

"""The lock in a run's folder, held for the life of its driver: the kernel releases it, however the driver ends.

Machines that share the folder see each other's locks on some file systems (NFS 4) and not on others; some have none.
There the heartbeat in the run's state takes its place, see :mod:`training.run_records.run_folder`.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

LOCK_FILE = "driver.lock"

LockState = Literal["held", "free", "unknown"]

# A process that only checks the lock also holds it for a moment.
_WAIT_SECONDS, _NAP_SECONDS = 0.4, 0.02

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


@contextlib.contextmanager
def hold_lock(folder: Path) -> Iterator[LockState]:
    """Hold the lock of a run's folder while the block runs; does nothing on a file system without locks.

    Yields:
        The former state of the lock: free, or unknown on a file system without locks.

    Raises:
        BlockingIOError: Another driver holds it.
    """
    state: LockState = "free"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_lock(folder).acquire(timeout=_WAIT_SECONDS, poll_interval=_NAP_SECONDS))
        except Timeout as error:
            raise BlockingIOError(errno.EWOULDBLOCK, "another driver holds the lock", error.lock_file) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            state = "unknown"
        yield state


def look_at_lock(folder: Path) -> LockState:
    """Return the state of the lock as seen from this machine."""
    if not (folder / LOCK_FILE).exists():
        return "unknown"
    try:
        with _lock(folder).acquire(timeout=0):
            return "free"
    except Timeout:
        return "held"
    except OSError:  # The file belongs to another user, or there are no locks.
        return "unknown"


def _lock(folder: Path) -> FileLock:
    # The library's fallback for file systems without locks would outlive its driver.
    return FileLock(folder / LOCK_FILE, thread_local=False, fallback_to_soft=False)

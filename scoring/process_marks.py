"""Which processes live that use a folder that they share, and what of it each of them uses: marks in its `processes/`.

A process has a folder there, called after its host, and holds a lock in it until it ends; the system frees the locks of
processes that die. Whoever calls what is here (but for the locks themselves) holds a lock on the shared folder.
"""

import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

_PROCESSES, _LOCK = "processes", "lock"


def hold(path: Path, waiting: Callable[[], None] = lambda: None) -> int:
    """Open and lock the file at ``path``, which is made where it is missing, and return what :func:`free` takes.

    Args:
        path: The file.
        waiting: Called where another holds it, before it is waited for.
    """
    lock = _opened(path)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:  # Ctrl-C, too, while it waits
        os.close(lock)
        raise
    return lock


def free(lock: int) -> None:
    """Unlock and close what :func:`hold` returned."""
    try:
        # Closing alone frees it only where no child that was forked meanwhile has the same open file.
        fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def own_folder(shared: Path) -> Path:
    """Return this process's folder among the marks of ``shared``: what lies there goes when the process has ended."""
    own = _begun_folder(shared)
    if not own.is_dir():
        # Somebody has emptied the shared folder.
        _begun_folder.cache_clear()
        own = _begun_folder(shared)
    return own


def mark(shared: Path, name: str) -> None:
    """Put down that this process uses ``name`` until it ends."""
    (own_folder(shared) / name).touch()


def marked(shared: Path) -> set[str]:
    """Return what living processes use; the folders of those that have ended are removed."""
    _remove_ended(shared / _PROCESSES)
    return {mark.name for mark in (shared / _PROCESSES).glob("*/*")}


@cache
def _begun_folder(shared: Path) -> Path:
    """Make this process's folder; its lock is held until the process ends, and so it is known to live."""
    processes = shared / _PROCESSES
    processes.mkdir(exist_ok=True)
    _remove_ended(processes)
    own = Path(tempfile.mkdtemp(prefix=f"{_host()}-", dir=processes))
    hold(own / _LOCK)
    return own


def _remove_ended(processes: Path) -> None:
    """Remove the folders of processes of this host that have ended.

    On a network disk the locks of other hosts may not be seen here: their folders are theirs to remove.
    """
    for folder in processes.iterdir():
        if folder.name.rpartition("-")[0] != _host():
            continue
        lock = _opened(folder / _LOCK)
        try:
            with suppress(BlockingIOError):  # it lives
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            free(lock)


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

"""Cached digests of models. Files are read again only if they have changed."""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from mirrorspark.scoring.model.directory import folder_digest, model_files

# Enough for a call with thousands of models; an entry takes a few hundred bytes per file.
_KEPT_FOLDERS = 10_000
# FAT has the coarsest timestamps of all file systems: two seconds.
_CLOCK_TICK_NS = 2 * 10**9

_FileState: TypeAlias = tuple[str, int, int, int, int]
"""Relative name, size in bytes, mtime and ctime in ns, and inode."""


def cached_digest(folder: Path, *, now_ns: Callable[[], int] = time.time_ns) -> str:
    """Return :func:`folder_digest` of ``folder``, from the cache if the files are unchanged.

    Args:
        folder: Folder of a model.
        now_ns: Returns the time of day in nanoseconds.
    """
    # A write changes mtime, a replaced file has another inode, and ctime cannot be set back. Two changes may fall into
    # one tick of the file system's clock, so the cache is not used for files that young. A change that is missed
    # nevertheless cannot produce wrong scores: load_once reads the files and compares their digest with this one, and
    # loaded models are cached by digest.
    states = tuple(_state(name, path) for name, path in model_files(folder))
    latest_ns = max((max(written, changed) for _, _, written, changed, _ in states), default=0)
    if now_ns() - latest_ns < _CLOCK_TICK_NS:
        return folder_digest(folder)
    return _digest(folder, states)


def _state(name: str, path: Path) -> _FileState:
    found = path.stat()
    return name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@lru_cache(maxsize=_KEPT_FOLDERS)
def _digest(folder: Path, states: tuple[_FileState, ...]) -> str:
    """Return the digest of ``folder``; ``states`` are part of the cache key."""
    return folder_digest(folder)

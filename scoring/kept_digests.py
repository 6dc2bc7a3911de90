"""Digests of models that this process has taken before: files are read again only where they have changed."""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from scoring.model_directory import folder_digest, model_files

# Of the thousands of models that one call may have; a folder takes a few hundred bytes per file.
_KEPT_FOLDERS = 10_000
# The coarsest clock that a file system stamps its files by is that of FAT.
_CLOCK_TICK_NS = 2 * 10**9

_FileState: TypeAlias = tuple[str, int, int, int, int]
"""Relative name, size in bytes, times of the last write and of the last change of any kind (ns), and inode."""


def kept_digest(folder: Path, *, now_ns: Callable[[], int] = time.time_ns) -> str:
    """Return :func:`folder_digest` of ``folder``, from its files only where they are not those of the last time.

    Args:
        folder: A model.
        now_ns: Returns the time of day in nanoseconds.
    """
    # What is written gets a new time, what is put in another's place another inode, and nobody can set back the time of
    # the last change (ctime). One tick of the file system's clock may hold two changes, so of files that are that young
    # nothing is believed. If a change slips through all the same, no score does: a process that loads the model reads
    # its files and compares their digest with this one (load_once), and what it has loaded before is kept by digest.
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
    """Return the digest of ``folder`` while its files have these ``states``, which are there to be compared."""
    return folder_digest(folder)

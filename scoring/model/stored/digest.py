"""The digest of a model's folder: which files it covers, and when they are read for it."""

import hashlib
import time
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from mirrorspark.scoring.model.folder import ModelDirectoryError
from mirrorspark.storage import leads_out

# Enough for a call with thousands of models; an entry takes a few hundred bytes per file.
_KEPT_FOLDERS = 10_000
# FAT has the coarsest timestamps of all file systems: two seconds.
_CLOCK_TICK_NS = 2 * 10**9

_FileState: TypeAlias = tuple[str, int, int, int, int]
"""Relative name, size in bytes, mtime and ctime in ns, and inode."""


def is_outside_digest(name: str) -> bool:
    """Return whether a file of that relative name may be one that :func:`model_files` leaves out."""
    return leads_out(name) or "__pycache__" in name


def model_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files below ``folder`` that the digest covers, with their relative names, sorted.

    Python's caches are left out: they appear when code in an MLflow model is first imported, and scoring ignores them.
    Only the names that Python gives them are, which have two suffixes: no module can be imported by such a name.

    Raises:
        ModelDirectoryError: A part of it is a link to a folder.
    """
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink() and path.is_dir():
            raise ModelDirectoryError(
                f"{path} is a link to a folder, whose files the digest of the model would not cover; copy the folder"
            )
        is_cache = path.parent.name == "__pycache__" and path.match("*.*.pyc")
        if path.is_file() and not is_cache:
            found.append((path.relative_to(folder).as_posix(), path))
    return sorted(found)


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 (64 hex digits) over relative names and contents of a model's files."""
    digest = hashlib.sha256()
    for name, path in model_files(folder):
        with path.open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def archive_digest(archive: zipfile.ZipFile) -> str:
    """Return the digest of a folder's model files in an archive, equal to :func:`folder_digest` of that folder."""
    digest = hashlib.sha256()
    for name in sorted(archive.namelist()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(archive.read(name)).digest())
    return digest.hexdigest()


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

"""A folder that is temporarily missing or full."""

import contextlib
import errno
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def vanished(folder: str | Path) -> Iterator[None]:
    """Make a local folder unavailable while the block runs, as if its disk were unmounted.

    A dangling link replaces it, so that nothing can be found or created there.
    """
    place = Path(folder).absolute()
    aside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    place.rename(aside)
    try:
        # Without the link a writer could create the folder again.
        place.symlink_to(aside.with_name(f"{aside.name}.gone"))
        yield
    finally:
        if place.is_symlink():
            place.unlink()
        aside.rename(place)


@contextlib.contextmanager
def full_disk(folder: str | Path) -> Iterator[None]:
    """Make this process's writes below a local folder fail with "No space left on device" while the block runs.

    This covers files and folders that Python opens and creates, not those of C libraries.
    """
    guard = _FullDisk(os.path.realpath(folder))
    sys.addaudithook(guard)
    try:
        yield
    finally:
        guard.is_full = False  # An audit hook cannot be removed.


class _FullDisk:
    """An audit hook that refuses to open files for writing below a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.is_full = True
        # The hook's own calls may be audited.
        self._is_within = threading.local()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_full or event not in ("open", "os.mkdir", "os.link"):
            return
        path = arguments[1] if event == "os.link" else arguments[0]
        is_writing = event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if not is_writing or not isinstance(path, str | bytes) or getattr(self._is_within, "it", False):
            return
        self._is_within.it = True
        try:
            real = os.path.realpath(os.fsdecode(path))
        finally:
            self._is_within.it = False
        if real == self._folder or real.startswith(self._folder + os.sep):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), real)

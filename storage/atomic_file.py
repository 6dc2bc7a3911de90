"""Atomic replacement of small local files: after a crash the old content or the new one is there, never a part."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4


@contextmanager
def replaced(path: Path, *, is_flushed: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of ``path`` when the block ends, and never if the block raises.

    Args:
        path: The file.
        is_flushed: Whether to wait until the disk has the content. Without this, a power cut may leave an empty file
            under the new name.

    Raises:
        OSError: The file cannot be written; the old one is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            yield file
            if is_flushed:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step: readers see the old content or all of the new one, even after a crash.

    Raises:
        OSError: The file cannot be written; the old one is unchanged.
    """
    with replaced(path) as file:
        file.write(text.encode())


def write_when_changed(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as :func:`write_atomically` does, unless the file has this content already.

    Raises:
        OSError: The file cannot be written; the old one is unchanged.
    """
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    write_atomically(path, text)

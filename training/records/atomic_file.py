"""Small files that are there as they were, or as they are to be, whatever dies meanwhile."""

import os
from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path``; who reads meanwhile, or after a crash, sees what was there before, or all of this.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # Without it, a machine that loses its power may keep the new name of an empty file.
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_when_changed(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as :func:`write_atomically` does, and leave a file alone that says the same.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    write_atomically(path, text)

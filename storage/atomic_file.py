"""Atomic replacement of local files and folders: after a crash the old or the new content is there, never a part."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

from mirrorspark.storage.abilities import REFUSALS, can_rename

_ID = re.compile(r"[0-9a-f]{32}")


def move(source: Path, target: Path) -> None:
    """Rename a file or folder; copy it to another file system, or to one without renames, as a mounted object store.

    Without renames a copy is not atomic: a file is written over the old one, and readers see it when it is closed, as
    such stores do it. In a folder that is copied the uppermost files appear last, in the order of their names.

    Raises:
        OSError: The file system refuses; a folder that was copied in part is removed.
    """
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in {*REFUSALS, errno.EXDEV}:
            raise
        if source.is_dir():
            _copy_folder(source, target)
        elif error.errno == errno.EXDEV and can_rename(target):
            with temporary_beside(target) as copy:
                _copy_file(source, copy)
                copy.replace(target)
            source.unlink()
        else:
            _copy_file(source, target)
            source.unlink()


def _copy_folder(source: Path, target: Path) -> None:
    if target.exists() and any(target.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(target))
    try:
        target.mkdir(exist_ok=True)
        paths = [*source.rglob("*")]
        for path in sorted(paths, key=lambda path: (path.is_file(), path.is_file() and path.parent == source, path)):
            goal = target / path.relative_to(source)
            goal.mkdir() if path.is_dir() else _copy_file(path, goal)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    shutil.rmtree(source)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as content, target.open("wb") as copy:
        shutil.copyfileobj(content, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of ``path`` when the block ends and the disk has it, never if the block raises.

    Raises:
        OSError: The file cannot be written; the old one is unchanged.
    """
    with temporary_beside(path) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)


@contextmanager
def arriving(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that appears as ``path`` when the block ends, and never if the block raises.

    For one of many files of a folder that is made once, and deleted if that fails: a power cut may leave an empty file,
    and leftovers of a killed process are not looked for, since that reads the whole folder for each of its files.

    Raises:
        OSError: The file cannot be written.
    """
    temporary, descriptor = _locked_file(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file next to ``path``, which is removed at the end unless it has been renamed.

    The file is locked meanwhile. A process that is killed leaves it without a lock, and the next call for the same
    ``path`` removes it.

    Raises:
        OSError: The file cannot be created.
    """
    _remove_abandoned(path)
    temporary, descriptor = _locked_file(path)
    try:
        yield temporary
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block ends, and is removed if the block raises.

    It is next to ``path``, where the next call for the same ``path`` removes the leftovers of a killed process. Where
    ``path`` has no renames, which libraries may need to write files, it is in the system's folder for temporary files,
    and a process that is killed while it is copied leaves a part of it at ``path``.

    Raises:
        OSError: The folder cannot be created, or ``path`` is not empty.
    """
    with _folder_beside(path) if can_rename(path) else _local_folder(path.name) as whole:
        yield whole
        move(whole, path)


@contextmanager
def _local_folder(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, name)
        folder.mkdir()
        yield folder


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    _remove_abandoned(path)
    temporary, descriptor = _locked_folder(path)
    try:
        yield temporary
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
        os.close(descriptor)


def _locked_folder(path: Path) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        temporary.mkdir()
        # Another process may find it before it is locked, and remove it.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(temporary, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a disk without locks, where nothing is taken for abandoned
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, descriptor
            os.close(descriptor)


def _locked_file(path: Path) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a disk without locks, where nothing is taken for abandoned
            return temporary, descriptor
        # Another process may have found it before it was locked, and removed it.
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files and folders of processes that were killed while they replaced ``path``."""
    prefix = f".{path.name}."
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and _ID.fullmatch(entry.name.removeprefix(prefix)):
                with contextlib.suppress(OSError):
                    _remove_unless_locked(Path(entry.path))


def _remove_unless_locked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


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

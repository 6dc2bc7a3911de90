"""The abilities of a folder's file system, found by trying them: mounted stores and networks lack some of them."""

import errno
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

Ability = Literal[
    "append",
    "random writes",
    "renames of files",
    "renames of folders",
    "renames onto folders",
    "hard links",
    "locks",
    "SQLite",
    "SQLite with WAL",
]

# A file system gives these errors for what it cannot do at all.
REFUSALS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP})

_OLD, _NEW = b"old", b"new"


def missing_abilities(folder: Path, abilities: tuple[Ability, ...] | None = None) -> dict[Ability, str]:
    """Return the abilities that a folder lacks, each with the reason that the system gives. Leaves nothing behind.

    Args:
        folder: It exists.
        abilities: Abilities to try; by default all.

    Raises:
        OSError: Nothing can be written to it.
    """
    missing: dict[Ability, str] = {}
    with _scratch_in(folder) as scratch:
        for ability in abilities or tuple(_TRIALS):
            place = Path(scratch, ability.replace(" ", "-"))
            place.mkdir()
            try:
                _TRIALS[ability](place)
            except (OSError, sqlite3.Error) as error:
                missing[ability] = getattr(error, "strerror", None) or str(error)
    return missing


def can_append(folder: Path) -> bool:
    """Return whether files of an existing folder can be appended to; a mounted object store refuses.

    Raises:
        OSError: Nothing can be written there, or the disk is full.
    """
    return _has(folder, _append)


def can_rename(path: Path) -> bool:
    """Return whether files and folders can be renamed at a path that need not exist; True if that cannot be tried."""
    try:
        return _renames(_existing(path))
    except OSError:
        return True


def can_hold_sqlite(path: Path) -> bool:
    """Return whether SQLite can write at a path that need not exist; True if that cannot be tried."""
    try:
        return _has(_existing(path), _sqlite)  # not cached: a reason may pass, such as too many open files
    except OSError:
        return True


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


@lru_cache(maxsize=1000)
def _renames(folder: Path) -> bool:
    return _has(folder, _rename_folder)


def _has(folder: Path, trial: Callable[[Path], None]) -> bool:
    with _scratch_in(folder) as scratch:
        try:
            trial(Path(scratch))
        except OSError as error:
            # Some layered file systems rename no folder even within one.
            if error.errno not in {*REFUSALS, errno.EXDEV}:
                raise
            return False
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            return False
    return True


@contextmanager
def _scratch_in(folder: Path) -> Iterator[str]:
    scratch = tempfile.mkdtemp(dir=folder, prefix=".abilities-test-")
    try:
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        # Ctrl-C may have come while it was removed.
        shutil.rmtree(scratch, ignore_errors=True)


def _append(place: Path) -> None:
    file = _written(place / "file")
    with file.open("ab") as opened:
        opened.write(_NEW)
    _require(file.read_bytes() == _OLD + _NEW)


def _write_within(place: Path) -> None:
    file = _written(place / "file")
    with file.open("r+b") as opened:
        opened.seek(1)
        opened.write(_NEW[:1])
    _require(file.read_bytes() == _OLD[:1] + _NEW[:1] + _OLD[2:])


def _rename_file(place: Path) -> None:
    file, goal = place / "file", _written(place / "goal")
    file.write_bytes(_NEW)
    file.replace(goal)
    _require(goal.read_bytes() == _NEW and not file.exists())


def _rename_folder(place: Path) -> None:
    folder = place / "folder"
    folder.mkdir()
    _written(folder / "file")
    goal = folder.rename(place / "goal")
    _require((goal / "file").read_bytes() == _OLD and not folder.exists())


def _rename_onto_folder(place: Path) -> None:
    (place / "goal").mkdir()
    _rename_folder(place)


def _link(place: Path) -> None:
    link = place / "link"
    link.hardlink_to(_written(place / "file"))
    _require(link.read_bytes() == _OLD)


def _lock(place: Path) -> None:
    with _written(place / "file").open("r+b") as first, (place / "file").open("r+b") as second:
        fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(first, fcntl.LOCK_UN)
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return
    raise OSError(errno.ENOLCK, "two get the same lock")


def _sqlite(place: Path) -> None:
    _database(place, "delete")


def _sqlite_with_wal(place: Path) -> None:
    _database(place, "wal")


def _database(place: Path, mode: str) -> None:
    # Nothing waits for the disk, which may take seconds on a busy machine.
    with closing(sqlite3.connect(place / "file.db", timeout=0, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        (found,) = connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()
        if found != mode:
            raise sqlite3.OperationalError(f"the journal's mode stays {found}")
        for statement in ("CREATE TABLE t (x)", "INSERT INTO t VALUES (1)", "UPDATE t SET x = 2"):
            connection.execute(statement)
        _require(connection.execute("SELECT x FROM t").fetchall() == [(2,)])


def _written(file: Path) -> Path:
    file.write_bytes(_OLD)
    return file


def _require(holds: bool) -> None:
    if not holds:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


_TRIALS: Mapping[Ability, Callable[[Path], None]] = {
    "append": _append,
    "random writes": _write_within,
    "renames of files": _rename_file,
    "renames of folders": _rename_folder,
    "renames onto folders": _rename_onto_folder,
    "hard links": _link,
    "locks": _lock,
    "SQLite": _sqlite,
    "SQLite with WAL": _sqlite_with_wal,
}

"""The journal of a publish that moves files one by one: the files that it adds and deletes, and its commit.

Before the commit our readers ignore the new files, and recovery removes them if the owner is dead. The commit is one
rewrite of the journal: from then on readers see the new files and ignore the replaced ones, and recovery deletes the
replaced ones.
"""

import errno
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.claims import recorded_outcome
from mirrorspark.storage.publish.staging import SUCCESS_FILE, UnsafeJournalError, check_inside, is_open

T = TypeVar("T")

Check = Callable[[], None]
"""Raises an error if this process may have been taken for dead."""

JOURNAL_FILE = "publish.json"

_REPLACED_FOLDER = "replaced"
# An object store takes tens of milliseconds per copy and serves many in parallel.
_PARALLEL_COPIES = 16


@dataclass(frozen=True)
class Journal:
    """The content of a publish, stored in its staging folder; all paths are relative to the target.

    Attributes:
        files: Files to add.
        deletes: Files to delete once ``files`` are all there.
        replaced: The ones of ``files`` that existed before; the staging folder has copies of them.
        had_success: Whether the target had a ``_SUCCESS`` file.
        is_moved: Whether all files have been added, so that the publish is committed.
    """

    files: tuple[str, ...]
    deletes: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    had_success: bool = False
    is_moved: bool = False

    def __post_init__(self) -> None:
        check_inside([*self.files, *self.deletes, *self.replaced])

    @property
    def added(self) -> list[str]:
        """Those of ``files`` that did not exist before."""
        return [name for name in self.files if name not in self.replaced]

    @classmethod
    def find(cls, staging: StoragePath) -> "Journal | None":
        """Return the journal of an unfinished publish, or None.

        Raises:
            UnsafeJournalError: The journal is damaged, or names a file outside the target.
        """
        if not is_open(staging):
            return None
        try:
            entries = json.loads((staging / JOURNAL_FILE).read_bytes())
            paths = {name: tuple(entries[name]) for name in ("files", "deletes", "replaced")}
            found = cls(**paths, had_success=entries["had_success"] is True, is_moved=entries["is_moved"] is True)
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise UnsafeJournalError(
                f"{staging / JOURNAL_FILE} is not a valid journal of a write ({error!r}) and was ignored: find "
                f"out who created {staging}, then delete that folder"
            ) from error
        outcome = recorded_outcome(staging)
        return found if outcome is None else replace(found, is_moved=outcome)

    def begin(self, staging: StoragePath, target: StoragePath) -> None:
        """Copy the files that are replaced, then write the journal."""
        for name in self.replaced:
            # These are notes of a few bytes each.
            (staging / _REPLACED_FOLDER / name).write_bytes((target / name).read_bytes())
        self._save(staging)

    def commit(self, staging: StoragePath, target: StoragePath) -> "Journal":
        """Commit the publish, after flushing files that replace others."""
        if self.deletes:
            flush(target, self.files)
        moved = replace(self, is_moved=True)
        moved._save(staging)
        return moved

    def withdraw(self, staging: StoragePath) -> None:
        """Undo the commit: a store may have stored it although it reported a failure."""
        replace(self, is_moved=False)._save(staging)

    def finish(self, staging: StoragePath, target: StoragePath) -> None:
        """Delete the files that the new ones replace, and the journal last."""
        in_parallel(lambda name: (target / name).delete(), self.deletes)
        _remove_empty_folders(target, self.deletes)
        (target / SUCCESS_FILE).write_bytes(b"")
        self._end(staging, target, self.deletes)

    def take_back(self, staging: StoragePath, target: StoragePath, check: Check) -> None:
        """Delete the new files, so that the target is as it was before; ``check`` raises to end this at once."""

        def remove(name: str) -> None:
            # After a pause, another write may have added a file of the same name.
            check()
            (target / name).delete()

        in_parallel(remove, self.added)
        _remove_empty_folders(target, self.added)
        for name in self.replaced:
            # Another process that takes the same write back deletes the copy once it is back in its place.
            check()
            with suppress(FileNotFoundError):
                (target / name).write_bytes((staging / _REPLACED_FOLDER / name).read_bytes())
        if self.had_success:
            (target / SUCCESS_FILE).write_bytes(b"")
        self._end(staging, target, self.added)

    def settle(self, staging: StoragePath, target: StoragePath, check: Check) -> None:
        """End a publish that failed or whose writer is dead: finish it if it is committed, else take it back."""
        if self.is_moved:
            self.finish(staging, target)
        else:
            self.take_back(staging, target, check)

    def _end(self, staging: StoragePath, target: StoragePath, deleted: Sequence[str]) -> None:
        """Delete the journal once the disk has the deletions, which nobody would repeat without it."""
        if deleted:
            _flush_folders(target, deleted)
        (staging / JOURNAL_FILE).delete()

    def _save(self, staging: StoragePath) -> None:
        (staging / JOURNAL_FILE).write_bytes(json.dumps(asdict(self)).encode())
        staging.flush_to_disk()


def in_parallel(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do ``work`` on all of ``items`` in parallel; after an error no further item is begun."""
    with ThreadPoolExecutor(_PARALLEL_COPIES) as pool:
        # list() raises the first error; map alone would swallow it.
        list(pool.map(work, items))


def flush(root: StoragePath, names: Iterable[str]) -> None:
    """Wait until the disk has the named files below ``root``, and the entries of their folders."""
    names = list(names)
    for name in names:
        (root / name).flush_to_disk()
    _flush_folders(root, names)


def _flush_folders(root: StoragePath, names: Iterable[str]) -> None:
    """Wait until the disk has the entries of the folders of these files, as the folders are there."""
    for folder in {parent for name in names for parent in Path(name).parents} | {Path()}:
        with suppress(FileNotFoundError):
            (root / folder.as_posix()).flush_to_disk()


def _remove_empty_folders(target: StoragePath, deleted: Iterable[str]) -> None:
    """Remove local partition folders that are empty now; object stores have no real folders."""
    if not target.is_local:
        return
    folders = {parent for name in deleted for parent in Path(name).parents if parent != Path()}
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        try:
            (target.local / folder).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise

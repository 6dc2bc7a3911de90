"""Recovery of writes whose owner is gone: they are found beside or below their target, and taken back or finished."""

import errno
import logging
import os
from dataclasses import dataclass
from uuid import uuid4

from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.journal import JOURNAL_FILE, Journal
from mirrorspark.storage.publish.lease import TIMING, Lease, Owner, Timing, discard_lock, living, owner_of
from mirrorspark.storage.publish.targets import STAGING_PREFIX

ATTEMPTS_FOLDER = "attempts"
"""Folder in a staging folder to which tasks write."""

WHOLE_FOLDER = "whole"
"""Folder in a staging folder that is to become the target."""

FORMER_FOLDER = "former"
"""Folder in a staging folder that was the target and has been replaced."""

_LOGGER = logging.getLogger(__name__)

# Part of the name of a staging folder whose write is over and whose content can be deleted.
_OVER_MARK = "~"


class WriteInProgressError(OSError):
    """Another living process writes to the target."""


class ForeignStagingError(PermissionError):
    """A staging folder, or a file in it that decides which files are deleted, belongs to another user."""


@dataclass(frozen=True)
class Staging:
    """The hidden folder of a write."""

    folder: StoragePath
    target: StoragePath

    @classmethod
    def of(cls, target: StoragePath, write_id: str, *, is_beside: bool) -> "Staging":
        """Return the staging folder of the write with that id, beside the target or below it."""
        name = f"{STAGING_PREFIX}{write_id}"
        return cls(target.parent / f"{name}.{target.name}" if is_beside else target / name, target)

    @property
    def is_beside(self) -> bool:
        """True if the folder is beside the target, False if it is below it."""
        return self.folder.parent != self.target

    @property
    def write_id(self) -> str:
        """Id of the write, unique for its target."""
        suffix = f".{self.target.name}" if self.is_beside else ""
        return self.folder.name.removeprefix(STAGING_PREFIX).removesuffix(suffix)

    @property
    def owner(self) -> Owner | None:
        """The current or last holder of the lease."""
        return owner_of(self.folder)

    @property
    def is_over(self) -> bool:
        """True if the write is over and the folder only remains to be deleted."""
        return _OVER_MARK in self.write_id

    @property
    def state(self) -> str:
        """The state of the write and the action that it needs, as a sentence.

        Raises:
            UnsafeJournalError: The journal is damaged, or names a file outside the target.
        """
        if self.is_over:
            return "remains of a write that is over, to be deleted"
        if self._replaces_nothing():
            return "an overwrite that was cut off; the former data are to take their place again"
        journal = Journal.find(self.folder)
        if journal is None:
            return "nothing was published, files are to be deleted"
        if journal.is_moved:
            return f"{len(journal.files)} files are published, {len(journal.deletes)} old ones are to be deleted"
        return f"a publish of {len(journal.files)} files that was cut off is to be taken back"

    def settle(self) -> None:
        """End the publish if one was begun: finish it if it is committed, else take it back."""
        self.restore_former()
        journal = Journal.find(self.folder)
        if journal is not None:
            journal.settle(self.folder, self.target)

    def restore_former(self) -> None:
        """Put the replaced folder back in its place if the new one has not arrived there."""
        if self._replaces_nothing():
            (self.folder / FORMER_FOLDER).rename(self.target)

    def remove(self) -> None:
        """Delete the folder of a write that is over; a failure is only logged, because nothing depends on it."""
        over = self
        try:
            # Spark ends the tasks of a failed write some time after it reports the failure. Renaming keeps them from
            # adding files to the folder while it is deleted. If the deletion is cut off, the next write completes it.
            if self.folder.is_local and not self.is_over:
                over = self._renamed(f"{self.write_id}{_OVER_MARK}")
                self.folder.rename(over.folder)
            over.folder.delete()
        except FileNotFoundError:
            return
        except OSError as error:
            _LOGGER.warning(
                "%s is left of a write that is over and cannot be deleted (%s): delete it by hand", over.folder, error
            )

    def clear(self) -> None:
        """Finish or take back a write whose owner is gone, unless another process does so at the same time.

        Raises:
            ForeignStagingError: The write belongs to another user.
            UnsafeJournalError: Its journal names a file outside the target.
            OSError: The store refuses.
        """
        self._check_ours()
        if self.is_over:
            self.remove()
            return
        # On a disk only one process can claim the folder; on an object store every step is safe to repeat.
        claimed = self._renamed() if self.folder.is_local else self
        try:
            if self.folder.is_local:
                self.folder.rename(claimed.folder)
            # First, so that an owner that was paused and goes on finds nothing to publish, and a full disk has room.
            (claimed.folder / ATTEMPTS_FOLDER).delete()
            discard_lock(claimed.folder)
            lease = Lease.take(claimed.folder)
        except FileNotFoundError:
            return
        try:
            # Once more: another folder may have taken the place of the one that was looked at.
            claimed._check_ours()
            claimed.settle()
        except BaseException:
            lease.release()
            raise
        lease.end()
        claimed.remove()

    def _renamed(self, write_id: str = "") -> "Staging":
        return Staging.of(self.target, f"{write_id}{uuid4().hex[:8]}", is_beside=self.is_beside)

    def _replaces_nothing(self) -> bool:
        return self.folder.is_local and (self.folder / FORMER_FOLDER).exists() and not self.target.exists()

    def _check_ours(self) -> None:
        if not self.folder.is_local:
            return
        for path in (self.folder, self.folder / JOURNAL_FILE, self.folder / FORMER_FOLDER):
            if path.local.is_symlink() or (path.exists() and path.local.lstat().st_uid != os.geteuid()):
                raise ForeignStagingError(
                    errno.EPERM,
                    "left over from a write by another user, and ignored; have that user run python -m "
                    "mirrorspark.storage.repair, or delete the folder if nobody needs it",
                    str(path),
                )


def stagings(target: StoragePath) -> list[Staging]:
    """Return the staging folders of writes to ``target``."""
    folders = target.folders()
    if target.is_local:
        folders += [folder for folder in target.parent.folders() if folder.name.endswith(f".{target.name}")]
    found = [Staging(folder, target) for folder in folders if folder.name.startswith(STAGING_PREFIX)]
    # An id with a dot belongs to a sibling whose name ends in that of the target.
    return [staging for staging in found if "." not in staging.write_id]


def recover(
    target: StoragePath,
    owner: Owner | None = None,
    *,
    kept: Staging | None = None,
    name: str | None = None,
    is_overwrite: bool = False,
    timing: Timing = TIMING,
) -> None:
    """Finish or take back the writes to ``target`` whose owner is gone, on this host or another.

    A committed publish is finished. Any other write is taken back. Writes with a living owner are left alone.

    Args:
        target: Target folder of the writes.
        owner: Owner of the write that is about to begin; None for this process.
        kept: A write to leave alone in any case.
        name: Id of the write that is about to begin; no other process may use it.
        is_overwrite: Whether to refuse any other process that writes to ``target``.
        timing: Intervals of the lease.

    Raises:
        WriteInProgressError: Another process is writing, and must not.
        ForeignStagingError: Another user has left a write.
        UnsafeJournalError: A journal names a file outside the target.
        OSError: The store refuses.
    """
    found = [staging for staging in stagings(target) if staging != kept]
    alive = living([staging.folder for staging in found if not staging.is_over], timing)
    for staging in found:
        if staging.folder not in alive:
            staging.clear()
            continue
        other = staging.owner
        is_refused = is_overwrite or staging.write_id == name
        if is_refused and other != (owner or Owner.here()) and staging.folder.exists():
            raise WriteInProgressError(
                errno.EBUSY,
                f"{other or 'another process'} is writing to {target}; wait until that write is over, or end that "
                f"process, then write again",
                str(staging.folder),
            )

"""Recovery of writes whose owner is dead: they lie next to or below their target, and are taken back or finished."""

import errno
import logging
import os
import stat
from collections.abc import Collection, Iterable
from functools import lru_cache

from mirrorspark.clear_error import ClearError
from mirrorspark.storage.lease import TIMING, Heartbeat, Holder, Lease, Timing, lease_content, renewed
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.claims import claim, record_outcome
from mirrorspark.storage.publish.journal import JOURNAL_FILE, Check, Journal
from mirrorspark.storage.publish.staging import ATTEMPTS_FOLDER, FORMER_FOLDER, LEASE_FILE, Staging, renames, stagings

_LOGGER = logging.getLogger(__name__)


class WriteInProgressError(ClearError, OSError):
    """Another living process writes to the target."""


class ForeignStagingError(ClearError, PermissionError):
    """A staging folder of another user has the only copy of the target's data."""


def recover(
    target: StoragePath,
    owner: Holder | None = None,
    *,
    kept: Staging | None = None,
    name: str | None = None,
    is_overwrite: bool = False,
    timing: Timing = TIMING,
) -> None:
    """Finish or take back the writes to ``target`` whose owner is dead, on this host or another.

    A committed publish is finished. Any other write is taken back. Writes with a living owner are left alone, and so
    are those of another user: a user who may create files in a shared folder must not keep others from writing.

    Args:
        target: Target folder of the writes.
        owner: Holder of the write that is about to begin; None for this process.
        kept: A write to leave alone in any case.
        name: Id of the write that is about to begin; no other process may use it.
        is_overwrite: Whether to refuse any other process that writes to ``target``.
        timing: Intervals of the lease.

    Raises:
        WriteInProgressError: Another process is writing, and must not: of this user, of root, or of the target's owner.
        ForeignStagingError: An overwrite by another user was cut off while the target was not there.
        UnsafeJournalError: A journal names a file outside the target.
        OSError: The store refuses.
    """
    found = [staging for staging in stagings(target) if staging != kept]
    foreign = {staging for staging in found if is_foreign(staging)}
    for staging in foreign:
        _leave_alone(staging)
    # An append harms nobody, so it need not know whether the writes of others are alive.
    heard = [
        one for one in found if one not in foreign or ((is_overwrite or one.write_name == name) and _may_write(one))
    ]
    alive = living([staging.folder for staging in heard if not staging.is_over], timing)
    for staging in heard:
        if staging.folder not in alive:
            if staging not in foreign:
                clear(staging)
            continue
        other = staging.owner
        is_refused = is_overwrite or staging.write_name == name
        if is_refused and other != (owner or Holder.here()) and staging.folder.exists():
            raise WriteInProgressError(
                errno.EBUSY,
                f"{other or 'another process'} is writing to {target}; wait until that write is over, or end that "
                f"process, then write again",
                str(staging.folder),
            )


def state_of(staging: Staging) -> str:
    """Return the state of a write and the action that it needs, as a sentence.

    Raises:
        UnsafeJournalError: The journal is damaged, or names a file outside the target.
    """
    if staging.is_over:
        return "remains of a write that is over, to be deleted"
    if _replaces_nothing(staging):
        return "an overwrite that was cut off; the former data are to take their place again"
    journal = Journal.find(staging.folder)
    if journal is None:
        return "nothing was published, files are to be deleted"
    if journal.is_moved:
        return f"{len(journal.files)} files are published, {len(journal.deletes)} old ones are to be deleted"
    return f"a publish of {len(journal.files)} files that was cut off is to be taken back"


def settle(staging: Staging, check: Check = lambda: None) -> None:
    """End the publish of a write if one was begun: finish it if it is committed, else take it back.

    ``check`` raises an error if this process may have been taken for dead.
    """
    restore_former(staging)
    journal = Journal.find(staging.folder)
    if journal is not None:
        journal.settle(staging.folder, staging.target, check)


def restore_former(staging: Staging) -> None:
    """Put the replaced folder back in its place if the new one has not arrived there."""
    if _replaces_nothing(staging):
        (staging.folder / FORMER_FOLDER).rename(staging.target)


def clear(staging: Staging) -> None:
    """Finish or take back a write whose owner is dead, unless another process does so at the same time.

    Raises:
        ForeignStagingError: The write belongs to another user; see :func:`is_foreign`.
        UnsafeJournalError: Its journal names a file outside the target.
        OSError: The store refuses.
    """
    _check_ours(staging)
    if staging.is_over:
        staging.remove()
        return
    # On a disk only one process can rename the folder; on an object store every step is safe to repeat.
    claimed = staging.renamed() if renames(staging.folder) else staging
    try:
        if claimed is not staging:
            staging.folder.rename(claimed.folder)
        # Before its files are removed, so that an owner that goes on and misses them knows why.
        claim(claimed.folder)
        # First, so that an owner that was paused and goes on finds nothing to publish, and a full disk has room.
        (claimed.folder / ATTEMPTS_FOLDER).delete()
        if (heartbeat := Heartbeat.parse(lease_content(claimed.lease_file))) is not None:
            heartbeat.discard_lock()
        lease = Lease.take(claimed.lease_file)
    except FileNotFoundError:
        return
    try:
        # Once more: another folder may have taken the place of the one that was looked at.
        _check_ours(claimed)
        journal = Journal.find(claimed.folder)
        if journal is not None:
            record_outcome(claimed.folder, is_finished=journal.is_moved)
        settle(claimed, lease.check)
    except BaseException:
        lease.release()
        raise
    lease.end()
    claimed.remove()


def _replaces_nothing(staging: Staging) -> bool:
    return staging.folder.is_local and (staging.folder / FORMER_FOLDER).exists() and not staging.target.exists()


def is_foreign(staging: Staging) -> bool:
    """Return whether a staging folder, or its file that decides on deletions, is a link or another user's.

    A folder that has gone meanwhile is nobody's. Objects of a store have no owner.
    """
    if not staging.folder.is_local:
        return False
    # The folder first: the content of another user's folder may be unreadable.
    for path in (staging.folder, staging.folder / JOURNAL_FILE, staging.folder / FORMER_FOLDER):
        try:
            found = path.local.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid():
            return True
    return False


def _check_ours(staging: Staging) -> None:
    if is_foreign(staging):
        raise ForeignStagingError(
            errno.EPERM,
            "left over from a write by another user, and ignored; have that user run python -m "
            "mirrorspark.storage.repair, or delete the folder if nobody needs it",
            str(staging.folder),
        )


def _leave_alone(staging: Staging) -> None:
    """Leave a write of another user as it is, and say so once.

    Raises:
        ForeignStagingError: The replaced data is only in its folder, and would be deleted with it once there is
            another target. Anybody who can make such a folder could also take the target's name.
    """
    if staging.is_beside and not staging.target.exists() and os.path.lexists(staging.folder.local / FORMER_FOLDER):
        _check_ours(staging)
    _warn_of_foreign_write(staging.folder)


@lru_cache(maxsize=1000)
def _warn_of_foreign_write(folder: StoragePath) -> None:
    _LOGGER.warning(
        "%s is left over from a write by another user, or a link, and was ignored; have that user run python -m "
        "mirrorspark.storage.repair, or delete it if nobody needs it",
        folder,
    )


def _may_write(staging: Staging) -> bool:
    """Return whether a write of another user is one by root or by the target's owner, whose lease can be read."""
    try:
        owners = {0, staging.target.local.lstat().st_uid}
        is_readable = os.access(staging.lease_file.local, os.R_OK, effective_ids=True)
        return is_readable and staging.folder.local.lstat().st_uid in owners
    except FileNotFoundError:
        return False


def living(stagings: Iterable[StoragePath], timing: Timing = TIMING) -> set[StoragePath]:
    """Return the staging folders whose owner is alive.

    For an owner on this host the answer is immediate. All other leases are watched in parallel until they change, which
    shows that the owner is alive, or have not changed for ``timing.stale_seconds``.
    """
    alive: set[StoragePath] = set()
    watched: dict[StoragePath, bytes | None] = {}
    for staging in stagings:
        content = lease_content(staging / LEASE_FILE)
        heartbeat = Heartbeat.parse(content)
        is_alive = heartbeat.is_alive if heartbeat else None
        if is_alive:
            alive.add(staging)
        elif is_alive is None:
            watched[staging] = content

    def warn(silent: Collection[StoragePath]) -> None:
        _LOGGER.warning(
            "waiting for up to %.0f s to see whether the writes in %s are alive",
            timing.stale_seconds,
            ", ".join(map(str, silent)),
        )

    return alive | renewed(watched, lambda staging: lease_content(staging / LEASE_FILE), timing, warn)

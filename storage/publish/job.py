"""A write of files by many tasks: each writes below a hidden folder, and the driver publishes the files at the end.

Tasks write below a staging folder that readers ignore. When all of them have reported, the driver publishes the files
that they named; leftovers of killed, failed or speculative tasks are deleted with the staging folder. On a disk a new
folder is renamed to the target in one step. Where that is impossible (a store without renames, a mount point, an append
to existing data) the files are moved one by one under a journal, whose commit makes all of them visible at once. A
publish that fails before its commit is taken back; after its commit it is finished.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

from mirrorspark.storage.abilities import can_rename
from mirrorspark.storage.lakes import refuse_lake_write
from mirrorspark.storage.lease import TIMING, Holder, Lease, LeaseLostError, Timing
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.claims import is_claimed, is_lost
from mirrorspark.storage.publish.journal import Journal, flush, in_parallel
from mirrorspark.storage.publish.keeper import end_keeper, start_keeper
from mirrorspark.storage.publish.recovery import is_foreign, recover, restore_former, settle
from mirrorspark.storage.publish.save_modes import SaveMode, TargetExistsError, holds_data
from mirrorspark.storage.publish.staging import (
    ATTEMPTS_FOLDER,
    FORMER_FOLDER,
    LEASE_FILE,
    SUCCESS_FILE,
    WHOLE_FOLDER,
    Staging,
    check_inside,
    is_hidden,
    is_open,
    open_write,
    stagings,
)

_LOGGER = logging.getLogger(__name__)

_GIVEN_UP_FILE = "given-up"


@dataclass(frozen=True)
class WrittenFile:
    """One file that a task has completed, not visible yet.

    Attributes:
        attempt: Name of the task attempt's folder.
        path: Path relative to the target, for example ``day=3/part-00000-1f0c.tfrecord``.
        bytes: Size on the store.
    """

    attempt: str
    path: str
    rows: int
    records: int
    bytes: int


@dataclass(frozen=True)
class WriteJob:
    """One write: its target, save mode and hidden staging folder. A plain, picklable value."""

    target: StoragePath
    mode: SaveMode
    staging: StoragePath
    _lease: Lease | None = field(default=None, compare=False, repr=False)

    @classmethod
    def begin(
        cls,
        target: StoragePath,
        mode: SaveMode,
        *,
        driver: int | None = None,
        name: str | None = None,
        timing: Timing = TIMING,
    ) -> "WriteJob":
        """Begin a write, and recover earlier writes to ``target`` whose owner is dead.

        On a disk only this method creates the staging folder, so a task that outlives the write cannot bring it back.

        Args:
            target: Destination folder of the files.
            mode: Treatment of existing data.
            driver: PID of the owning driver, whose end also ends the write; None for this process.
            name: Identifies this write among those of the driver, in letters and digits; beginning again under the
                same name continues the same write. None for a unique name.
            timing: Intervals of the lease.

        Raises:
            TargetExistsError: There is data at ``target`` and the mode is ``error`` or ``ignore``.
            WriteInProgressError: Another process writes data that this write would overwrite, or has the same name.
            LakeTableError: ``target`` is, or lies in, a table that would not have the files.
            NotADirectoryError: ``target`` is a file.
            ForeignStagingError: Another user's overwrite was cut off while ``target`` was not there.
        """
        if target.is_local:
            # Links are resolved, because a rename would replace the link instead of the folder.
            target = StoragePath.of(target.local.resolve())
        refuse_lake_write(target)
        if target.is_file():
            raise NotADirectoryError(
                errno.ENOTDIR, "a write needs a folder as its target, and this is a file", str(target)
            )
        owner = Holder.here(driver)
        earlier = _earlier_write(target, name, owner) if name else None
        if earlier is not None:
            settle(earlier)
        if any(found != earlier for found in stagings(target)):
            is_overwrite = mode is SaveMode.OVERWRITE
            recover(target, owner, kept=earlier, name=name, is_overwrite=is_overwrite, timing=timing)
        if mode in (SaveMode.ERROR, SaveMode.IGNORE) and holds_data(target):
            raise TargetExistsError(target)
        # Never a folder that another process had under that name: it may have been paused, and go on there.
        write_id = f"{name}-{uuid4().hex[:8]}" if name else uuid4().hex[:8]
        place = earlier or Staging.of(target, write_id, is_beside=_takes_name_at_once(target, mode))
        staging = place.folder
        (staging / ATTEMPTS_FOLDER).make_folder()
        open_write(staging)
        job = cls(target, mode, staging.kept_within())
        if owner == Holder.here():
            return replace(job, _lease=Lease.take(staging / LEASE_FILE, owner, timing))
        start_keeper(staging, owner)
        return job

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the lease, which stays in the process that renews it."""
        return self.__dict__ | {"_lease": None}

    def begin_attempt(self, attempt: str) -> None:
        """Create the folder of the task attempt with that name.

        Raises:
            FileNotFoundError: The write is over, or the staging folder is on the driver's own disk.
        """
        if not self.staging.is_local:
            return
        folder = self.attempt_folder(attempt).local
        try:
            folder.mkdir()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                errno.ENOENT,
                "the write is over, or this machine does not share the driver's disk: write to a path that driver and "
                "executors share",
                str(folder),
            ) from error

    @contextmanager
    def attempt(self, partition: int) -> Iterator[str]:
        """Yield the name of a new attempt to write a partition; its files are removed if the block raises.

        File names contain this name, so two attempts, two appends or two batches of a stream never share a file name.

        Raises:
            FileNotFoundError: As in :meth:`begin_attempt`.
        """
        name = f"{partition:05d}-{uuid4().hex[:8]}"
        self.begin_attempt(name)
        try:
            yield name
        except BaseException:
            self.attempt_folder(name).delete()
            raise

    def give_up(self, why: str) -> None:
        """Record that nothing of the write will be published, for tasks that have yet to begin."""
        (self.staging / _GIVEN_UP_FILE).write_bytes(why.encode())

    @property
    def given_up(self) -> str | None:
        """The reason that a task gave in :meth:`give_up`, or None."""
        file = self.staging / _GIVEN_UP_FILE
        return file.read_bytes().decode() if file.is_file() else None

    def attempt_folder(self, attempt: str) -> StoragePath:
        """Return the folder of a task attempt, where each file has its path relative to the target."""
        return self.staging / ATTEMPTS_FOLDER / attempt

    def attempt_file(self, attempt: str, path: str) -> StoragePath:
        """Return the place where a task attempt writes the file that is published at ``path``."""
        return self.attempt_folder(attempt) / path

    def publish(self, files: Sequence[WrittenFile], *, last: Sequence[str] = ()) -> None:
        """Move ``files`` into the target, and remove the staging folder.

        Args:
            files: The files to publish. If the target already has data, visible file names must be new.
            last: Paths that appear after all others, in this order, if the files do not appear all at once.

        Raises:
            TargetExistsError: The mode is ``error`` or ``ignore``, and there is data by now.
            FileNotFoundError: A file that a task wrote is missing.
            LeaseLostError: Another process may have taken this write for dead.
            ValueError: ``last`` names a path that is not among the files.
            OSError: The store refuses. Without a note on the error the target is as it was. If an
                overwrite in place fails while deleting old files, old and new files remain, and the next write
                deletes the old ones.
        """
        if self.mode in (SaveMode.ERROR, SaveMode.IGNORE) and holds_data(self.target):
            raise TargetExistsError(self.target)
        unknown = sorted({*last} - {file.path for file in files})
        if unknown:
            raise ValueError(
                f"{unknown} are named as last, but are not among the {len(files)} files; name some of those"
            )
        check_inside(file.path for file in files)
        self._check_staged(files)
        lease = self._lease or self._taken_lease()
        try:
            if self._place.is_beside and not (self.mode is SaveMode.APPEND and holds_data(self.target)):
                self._publish_folder(files, lease)
            else:
                self._publish_files(files, last, lease)
        except LeaseLostError:
            if self._lease is None:
                lease.end()  # not released: the write may be in the hands of another process
            raise
        except BaseException:
            if self._lease is None:
                lease.release()
            raise
        lease.end()
        self._place.remove()

    def abort(self) -> None:
        """Take back a failed write, and remove the staging folder; the next write completes an incomplete removal."""
        if self._lease is None:
            end_keeper(self.staging)
        try:
            if is_claimed(self.staging):
                if self._lease is not None:
                    self._lease.end()
                return  # the process that claimed the write ends it, and still needs the folder
            if self._lease is not None and self._lease.is_kept:
                settle(self._place, self._lease.check)
            else:
                settle(self._place)
        except OSError as error:
            _LOGGER.warning("%s: %s; the next write will finish taking this one back", self.target, error)
            if self._lease is not None:
                self._lease.release()
            return
        if self._lease is not None:
            self._lease.end()
        self._place.remove()

    @property
    def _place(self) -> Staging:
        return Staging(self.staging, self.target)

    def _taken_lease(self) -> Lease:
        """Take over the lease from the keeper process, because Spark commits in a separate process."""
        owner = self._place.owner
        end_keeper(self.staging)
        return Lease.take(self._place.lease_file, owner)

    def _check_staged(self, files: Sequence[WrittenFile]) -> None:
        """Compare the files in the staging folder with the reports of the tasks."""
        attempts = self.staging / ATTEMPTS_FOLDER
        found = {file.path.relative_to(attempts): file.bytes for file in attempts.files()}
        for file in files:
            size = found.get(f"{file.attempt}/{file.path}")
            path = str(self.attempt_file(file.attempt, file.path))
            if size is None:
                raise FileNotFoundError(
                    errno.ENOENT,
                    "a file of this write was removed before it was published: another write replaced the target "
                    "or a program deleted it as temporary; nothing was published, write again",
                    path,
                )
            if size != file.bytes:
                raise OSError(
                    errno.EIO,
                    f"a file of this write has {size} bytes, and {file.bytes} were written; another program may have "
                    f"changed it; nothing was published, write again",
                    path,
                )

    def _publish_folder(self, files: Sequence[WrittenFile], lease: Lease) -> None:
        whole = self.staging / WHOLE_FOLDER
        # A killed commit may be retried under the same name.
        whole.delete()
        whole.make_folder()
        for file in files:
            self.attempt_file(file.attempt, file.path).rename(whole / file.path)
        with (whole / SUCCESS_FILE).open_write():
            pass  # an empty file, which cannot be there in part
        _check_lease(lease)
        if self.mode is SaveMode.OVERWRITE and self.target.exists():
            whole.local.chmod(stat.S_IMODE(self.target.local.stat().st_mode))
            # Flushed first, because the replaced data is deleted next.
            flush(whole, [file.path for file in files])
            try:
                self.target.rename(self.staging / FORMER_FOLDER)
                whole.rename(self.target)
            except BaseException:
                restore_former(self._place)
                raise
            self.target.parent.flush_to_disk()
            return
        try:
            whole.rename(self.target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Another write was slightly faster; the next append finds its files.
            raise TargetExistsError(self.target) from error

    def _publish_files(self, files: Sequence[WrittenFile], last: Sequence[str], lease: Lease) -> None:
        former: list[str] = []
        if self.mode is SaveMode.OVERWRITE:
            # An older publish that is taken back later would restore files that this one deletes.
            recover(self.target, lease.holder, kept=self._place, timing=lease.timing)
            former = _visible_files(self.target)
        names = sorted(file.path for file in files)
        journal = Journal(
            files=tuple(names),
            deletes=tuple(sorted({*former} - {*names})),
            replaced=tuple(
                name for name in names if name in former or (is_hidden(name) and (self.target / name).exists())
            ),
            had_success=(self.target / SUCCESS_FILE).exists(),
        )
        try:
            moved = self._commit_files(journal, files, last, lease)
        except LeaseLostError:
            if self._was_finished(journal, lease.timing):
                return
            others = [one for one in stagings(self.target) if one != self._place and not is_foreign(one)]
            if journal.had_success and not is_open(self.staging) and not others:
                # This process may have deleted the file after others had created it.
                (self.target / SUCCESS_FILE).write_bytes(b"")
            raise
        try:
            moved.finish(self.staging, self.target)
        except OSError as error:
            if moved.deletes:
                raise  # readers of others still see the old files; to write again replaces them
            # The files are published: after an error a caller would append them again.
            _LOGGER.warning("%s is written, but %s is missing there: %s", self.target, SUCCESS_FILE, error)

    def _commit_files(
        self, journal: Journal, files: Sequence[WrittenFile], last: Sequence[str], lease: Lease
    ) -> Journal:
        """Move the files to the target and commit; take them back if that fails, unless another process does so."""
        try:
            journal.begin(self.staging, self.target)
            self._check_kept()
            if journal.had_success:
                (self.target / SUCCESS_FILE).delete()
            self._move(files, last, lease)
            moved = journal.commit(self.staging, self.target)
            self._check_kept()
        except LeaseLostError:
            raise
        except BaseException as error:
            # The caller will write again after a failure, so any part that stayed would be there twice.
            try:
                journal.withdraw(self.staging)
                self._check_kept()
                journal.take_back(self.staging, self.target, partial(_check_lease, lease))
            except LeaseLostError as lost:
                if isinstance(error, Exception):
                    raise lost from error
            except OSError as second:
                error.add_note(
                    f"A part of the write may be visible in {self.target}: taking it back failed ({second}). The next "
                    f"write to it will do so"
                )
            raise
        return moved

    def _check_kept(self) -> None:
        """Make sure that no other process has taken over this write; on a disk it would have renamed the folder."""
        if is_lost(self.staging):
            raise LeaseLostError(
                f"another process took this write to {self.target} for dead and ended it (a process that was paused, "
                f"or a store that did not answer): write again"
            )

    def _was_finished(self, journal: Journal, timing: Timing) -> bool:
        """Wait until the process that claimed this write has ended it, and return whether the files are published."""
        deadline = timing.clock() + timing.stale_seconds
        while is_claimed(self.staging) and is_open(self.staging) and timing.clock() < deadline:
            timing.sleep(timing.heartbeat_seconds)
        # Taking a write back deletes the files that it added; only then is the folder closed.
        return (
            not is_open(self.staging)
            and bool(journal.added)
            and all((self.target / name).is_file() for name in journal.added)
        )

    def _move(self, files: Sequence[WrittenFile], last: Sequence[str], lease: Lease) -> None:
        """Move the files to their paths in the target; a file of unexpected size is an error."""

        def move(file: WrittenFile) -> None:
            goal = self.target / file.path
            _check_lease(lease)
            self.attempt_file(file.attempt, file.path).rename(goal)
            size = goal.size() if goal.is_file() else None
            if size != file.bytes:
                raise FileNotFoundError(
                    errno.ENOENT,
                    f"the file should be published with {file.bytes} bytes and "
                    f"{'is missing' if size is None else f'has {size}'}; "
                    "another program may have changed it; write again",
                    str(goal),
                )

        # Hidden files describe the visible ones, so they follow them.
        first = [file for file in files if file.path not in last]
        in_parallel(move, [file for file in first if not is_hidden(file.path)])
        in_parallel(move, [file for file in first if is_hidden(file.path)])
        for file in sorted((file for file in files if file.path in last), key=lambda file: last.index(file.path)):
            move(file)
        _check_lease(lease)


def _check_lease(lease: Lease) -> None:
    """Make sure that no other write can have taken this one back."""
    try:
        lease.check()
    except LeaseLostError as error:
        raise LeaseLostError(
            f"{error}, and another write may have taken this one back: it is not published; write again"
        ) from error


def _earlier_write(target: StoragePath, name: str, owner: Holder) -> Staging | None:
    return next(
        (
            left
            for left in stagings(target)
            if left.write_name == name and not left.is_over and not is_foreign(left)
            if left.owner == owner and not is_lost(left.folder)
        ),
        None,
    )


def _takes_name_at_once(target: StoragePath, mode: SaveMode) -> bool:
    """Return whether a new folder can be renamed to the target, so that all files appear in one step."""
    if not target.is_local or target.local.is_mount() or not can_rename(target.local):
        return False
    parent = target.parent.local
    is_writable = not parent.exists() or os.access(parent, os.W_OK)
    return is_writable and (mode is SaveMode.OVERWRITE or not holds_data(target))


def _visible_files(target: StoragePath) -> list[str]:
    names = [file.path.relative_to(target) for file in target.files()]
    return [name for name in names if not is_hidden(name)]

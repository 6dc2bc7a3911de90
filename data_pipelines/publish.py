"""Files of a Spark write become visible at once: attempt files in a hidden folder, one publish at the end.

Tasks write below a staging folder that readers pass over. When all of them have reported, the driver publishes the
files that they named; what killed, failed or speculative tasks left behind goes with the staging folder. On a disk a
whole new folder takes its name in one step, and the folder that it replaces stays in place until then. Where that
cannot be (an object store, a mount point, an append to what is there) the files are moved one by one, after a journal
was written. A publish that fails takes back what it has moved; one that was cut off by a crash is finished by the next
write, from its journal.
"""

import ctypes
import errno
import hashlib
import json
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil

from data_pipelines.storage import StoragePath

SUCCESS_FILE = "_SUCCESS"
"""Empty file that is written last, as Spark's own writers do: where it stands, the write before it was whole."""

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)

_STAGING_PREFIX = ".tfrecord-write-"
_JOURNAL_FILE = "publish.json"
_ATTEMPTS_FOLDER = "attempts"
_GIVEN_UP_FILE = "given-up"
_WHOLE_FOLDER = "whole"
_FORMER_FOLDER = "former"
_REPLACED_FOLDER = "replaced"
# In the name of a staging folder whose write is over: nothing in it is worth anything.
_OVER_MARK = "~"
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE_FILE = Path("/proc/self/ns/pid")
# The clock may have been set meanwhile, which moves the time that a process is said to have started at.
_SAME_START_SECONDS = 2.0
# An object store answers a copy in tens of milliseconds, and takes many at a time.
_COPIES_AT_A_TIME = 16
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class SaveMode(StrEnum):
    """What a write does where there is data already; Spark's words."""

    ERROR = "error"
    APPEND = "append"
    OVERWRITE = "overwrite"
    IGNORE = "ignore"

    @classmethod
    def of(cls, mode: str) -> "SaveMode":
        """Return the mode of that name; ``errorifexists`` and ``default`` are other names of ``error``.

        Raises:
            ValueError: There is no such mode.
        """
        name = mode.lower()
        if name in ("errorifexists", "default"):
            return cls.ERROR
        if name not in [*cls]:
            raise ValueError(f"mode {mode!r} is none of {', '.join(cls)}; choose one of them")
        return cls(name)


class TargetExistsError(FileExistsError):
    """There is data at the target, and the mode of the write leaves it alone."""

    def __init__(self, target: StoragePath) -> None:
        super().__init__(
            f"{target} exists already; use mode 'overwrite' to replace it, 'append' to add to it, or another path"
        )
        self.target = target

    def __reduce__(self) -> tuple[type["TargetExistsError"], tuple[StoragePath]]:
        """Pickle by the target: the message alone does not rebuild the error."""
        return TargetExistsError, (self.target,)


@dataclass(frozen=True)
class WrittenFile:
    """One file that a task has written whole, not visible yet.

    Attributes:
        attempt: Name of the task attempt's folder.
        path: Where it belongs, relative to the target, for example ``day=3/part-00000-1f0c.tfrecord``.
        rows: Rows in it.
        records: Records in it.
        bytes: Its size on the store.
    """

    attempt: str
    path: str
    rows: int
    records: int
    bytes: int


@dataclass(frozen=True)
class WriteJob:
    """Where the files of one write go before they are published: a plain value that pickles.

    Attributes:
        target: The folder that the files are for.
        mode: What becomes of what is there.
        staging: Hidden folder of this write.
    """

    target: StoragePath
    mode: SaveMode
    staging: StoragePath

    @classmethod
    def begin(
        cls, target: StoragePath, mode: SaveMode, *, driver: int | None = None, name: str | None = None
    ) -> "WriteJob":
        """Plan a write, and clear away what writes to ``target`` left behind whose driver on this host is gone.

        On a disk the staging folder is made here and nowhere else: a task that outlives the write cannot make it again.

        Args:
            target: The folder that the files are for.
            mode: What becomes of what is there.
            driver: Id of the process whose end means that the write is over; None for this process.
            name: What tells this write from others of the driver, in letters and digits; begun once more under the
                same name it is the same write. None for one of its own.

        Raises:
            TargetExistsError: There is data at ``target`` and the mode is ``error`` or ``ignore``.
            NotADirectoryError: ``target`` is a file.
        """
        if target.is_local:
            # A link is followed: what a rename would replace is the link, not the folder.
            target = StoragePath.of(target.local.resolve())
        if target.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "a file is where the folder of the files would be", str(target))
        recover(target)
        owner, write_id = _owner(driver), name or uuid4().hex[:8]
        for left in _stagings(target, owner):
            if left.write_id == write_id or _was_taken_back(left.folder):
                _settle(left.folder, target)
        if mode in (SaveMode.ERROR, SaveMode.IGNORE) and holds_data(target):
            raise TargetExistsError(target)
        folder = f"{_STAGING_PREFIX}{owner}-{write_id}"
        beside = target.parent / f"{folder}.{target.name}"
        staging = beside if _takes_name_at_once(target, mode) else target / folder
        (staging / _ATTEMPTS_FOLDER).make_folder()
        return cls(target, mode, staging.kept_within())

    def begin_attempt(self, attempt: str) -> None:
        """Make the folder of the task attempt of that name.

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
        """Yield the name of a new attempt to write a partition; its files are removed where the block raises.

        The name is part of the files': two attempts, two appends or two batches of a stream never share one.

        Raises:
            FileNotFoundError: As :meth:`begin_attempt`.
        """
        name = f"{partition:05d}-{uuid4().hex[:8]}"
        self.begin_attempt(name)
        try:
            yield name
        except BaseException:
            self.attempt_folder(name).delete()
            raise

    def give_up(self, why: str) -> None:
        """Let tasks that have yet to begin know that nothing of the write will be published."""
        (self.staging / _GIVEN_UP_FILE).write_bytes(why.encode())

    @property
    def given_up(self) -> str | None:
        """Why nothing will be published, if a task has found so."""
        file = self.staging / _GIVEN_UP_FILE
        return file.read_bytes().decode() if file.is_file() else None

    def attempt_folder(self, attempt: str) -> StoragePath:
        """Return where the task attempt of that name writes its files, each at the path where it belongs."""
        return self.staging / _ATTEMPTS_FOLDER / attempt

    def attempt_file(self, attempt: str, path: str) -> StoragePath:
        """Return where the task attempt of that name writes the file that belongs at ``path``."""
        return self.attempt_folder(attempt) / path

    def publish(self, files: Sequence[WrittenFile], *, last: Sequence[str] = ()) -> None:
        """Make ``files`` the content of the target, or part of it, and remove the staging folder.

        Args:
            files: What to publish. In a target that holds data already, names that are not hidden are new ones.
            last: Paths of those that appear after all others, in this order, where not all appear at once.

        Raises:
            TargetExistsError: The mode is ``error`` or ``ignore``, and there is data by now.
            FileNotFoundError: A file that a task has written is gone.
            ValueError: ``last`` names none of the files.
            OSError: The store refuses. Unless a note on the error says otherwise, the target is as it was; with
                ``overwrite`` in place, a failure to delete old files leaves both old and new ones, and the next
                overwrite deletes them.
        """
        takes_name = self.staging.parent != self.target
        if self.mode in (SaveMode.ERROR, SaveMode.IGNORE) and holds_data(self.target):
            raise TargetExistsError(self.target)
        unknown = sorted({*last} - {file.path for file in files})
        if unknown:
            raise ValueError(f"{unknown} are to appear last and are none of the {len(files)} files; name some of them")
        self._check_staged(files)
        if takes_name and not (self.mode is SaveMode.APPEND and holds_data(self.target)):
            self._publish_folder(files)
        else:
            self._publish_files(files, last)
        self._remove_staging()

    def abort(self) -> None:
        """Remove the staging folder, unless a publish was begun and not taken back: the next write ends that one."""
        _restore_former(self.staging, self.target)
        if not (self.staging / _JOURNAL_FILE).exists():
            self._remove_staging()

    def _check_staged(self, files: Sequence[WrittenFile]) -> None:
        """Compare the files of the tasks with what the tasks told."""
        attempts = self.staging / _ATTEMPTS_FOLDER
        found = {file.path.relative_to(attempts): file.bytes for file in attempts.files()}
        for file in files:
            size = found.get(f"{file.attempt}/{file.path}")
            path = str(self.attempt_file(file.attempt, file.path))
            if size is None:
                raise FileNotFoundError(
                    errno.ENOENT,
                    "a file of this write is gone before it was published, another write having replaced the target "
                    "or a program having deleted what it took for temporary; nothing was published, write again",
                    path,
                )
            if size != file.bytes:
                raise OSError(
                    errno.EIO,
                    f"a file of this write has {size} bytes, and {file.bytes} were written; another program may have "
                    f"changed it; nothing was published, write again",
                    path,
                )

    def _remove_staging(self) -> None:
        """Remove the staging folder; where that fails, the log says so: it changes nothing in what was published."""
        # Spark ends the tasks of a failed write some time after it tells of the failure. Under another name, none of
        # them puts a file into a folder that is being emptied; and cut off, the next write deletes the rest.
        if not self.staging.is_local:
            _delete_remains(self.staging)
        elif self.staging.exists():
            suffix = f".{self.target.name}" if self.staging.parent != self.target else ""
            name = f"{self.staging.name.removesuffix(suffix)}{_OVER_MARK}{uuid4().hex[:8]}{suffix}"
            _delete_remains(self.staging, under=self.staging.parent / name)

    def _publish_folder(self, files: Sequence[WrittenFile]) -> None:
        whole = self.staging / _WHOLE_FOLDER
        # A commit that was killed may be tried again under the same name.
        whole.delete()
        whole.make_folder()
        for file in files:
            self.attempt_file(file.attempt, file.path).rename(whole / file.path)
        (whole / SUCCESS_FILE).write_bytes(b"")
        if self.mode is SaveMode.OVERWRITE and self.target.exists():
            # The data that it replaces is deleted next.
            _flush(whole, [file.path for file in files])
            _replace_folder(self.staging, self.target)
            self.target.parent.flush_to_disk()
            return
        try:
            whole.rename(self.target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Another write was faster by a moment; the next append finds its files.
            raise TargetExistsError(self.target) from error

    def _publish_files(self, files: Sequence[WrittenFile], last: Sequence[str]) -> None:
        former: list[str] = []
        if self.mode is SaveMode.OVERWRITE:
            self._settle_other_publishes()
            former = [path.relative_to(self.target) for path in _visible_files(self.target)]
        names = {file.path for file in files}
        journal = _Journal(
            files=tuple(files),
            last=tuple(last),
            deletes=tuple(name for name in former if name not in names),
            replaced=tuple(
                name for name in sorted(names) if name in former or (is_hidden(name) and (self.target / name).exists())
            ),
            had_success=(self.target / SUCCESS_FILE).exists(),
        )
        for name in journal.replaced:
            # Notes, of a few bytes each.
            (self.staging / _REPLACED_FOLDER / name).write_bytes((self.target / name).read_bytes())
        try:
            journal.save(self.staging)
            journal.move(self.staging, self.target)
        except BaseException as error:
            # Whoever hears of the failure writes again: a part that stayed would be there twice.
            try:
                journal.take_back(self.staging, self.target)
            except OSError as second:
                error.add_note(
                    f"A part of the write may be visible in {self.target}: taking it back failed ({second}). The next "
                    f"write of this driver, or after its end, does it"
                )
            raise
        journal.finish(self.staging, self.target)

    def _settle_other_publishes(self) -> None:
        """End what this driver's other writes left, for it would bring back old data after an overwrite."""
        owner = _parsed(self.staging, self.target).owner
        for left in _stagings(self.target, owner):
            if left.folder != self.staging:
                _settle(left.folder, self.target)


def recover(target: StoragePath) -> None:
    """Finish or remove what writes to ``target`` left behind whose driver on this host is gone.

    A write that had begun to publish is finished, unless it had begun to take back what it had published; of any other
    nothing becomes visible.

    Raises:
        FileNotFoundError: A file of a publish that was cut off is gone.
        OSError: The store refuses.
    """
    for left in _stagings(target):
        if not _is_gone(left.owner):
            continue
        if not left.is_over:
            _recover(left.folder, target)
        _delete_remains(left.folder)


def holds_data(target: StoragePath) -> bool:
    """Return whether there is anything at ``target`` but empty folders and the hidden folders of writes under way."""
    if target.is_file():
        return True
    if target.is_local:
        return target.exists() and any(not entry.name.startswith(_STAGING_PREFIX) for entry in target.local.iterdir())
    # Folder by folder: the first that has a file ends the listing.
    return bool(target.files(recursive=False)) or any(
        folder.files() for folder in target.folders() if not folder.name.startswith(_STAGING_PREFIX)
    )


def is_hidden(relative_path: str) -> bool:
    """Return whether readers pass over a file: a part of its path begins with ``.`` or ``_``, as Spark has it.

    Folders of a partition column whose name begins with ``_`` are seen (``_day=3/``).
    """
    *folders, name = relative_path.split("/")
    return name.startswith((".", "_")) or any(
        folder.startswith(".") or (folder.startswith("_") and "=" not in folder) for folder in folders
    )


@dataclass(frozen=True)
class _Journal:
    """What a publish one by one does, kept in the staging folder while it lasts.

    Attributes:
        files: What it moves.
        last: Paths of those that it moves after the others.
        deletes: Paths that it deletes afterwards.
        replaced: Paths of files in the target that it replaces; copies of them are in the staging folder.
        had_success: Whether the target had its file that says so.
        is_taken_back: Whether it has failed, and what it has moved is being deleted again.
    """

    files: tuple[WrittenFile, ...]
    last: tuple[str, ...] = ()
    deletes: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    had_success: bool = False
    is_taken_back: bool = False

    @classmethod
    def find(cls, staging: StoragePath) -> "_Journal | None":
        """Return the journal of a publish that was begun and has not ended, or None."""
        try:
            entries = json.loads((staging / _JOURNAL_FILE).read_bytes())
        except FileNotFoundError:
            return None
        return cls(
            files=tuple(WrittenFile(**file) for file in entries["files"]),
            last=tuple(entries["last"]),
            deletes=tuple(entries["deletes"]),
            replaced=tuple(entries["replaced"]),
            had_success=entries["had_success"],
            is_taken_back=entries["is_taken_back"],
        )

    def save(self, staging: StoragePath) -> None:
        """Write it, in the place of the one that is there."""
        (staging / _JOURNAL_FILE).write_bytes(json.dumps(asdict(self)).encode())
        staging.flush_to_disk()

    def move(self, staging: StoragePath, target: StoragePath) -> None:
        """Move the files, those already moved excepted; a file of another size is an error."""
        (target / SUCCESS_FILE).delete()

        def move(file: WrittenFile) -> None:
            source, goal = _source(staging, file), target / file.path
            # A publish that was cut off has moved some already.
            if source.is_file():
                source.rename(goal)
            size = goal.size() if goal.is_file() else None
            if size != file.bytes:
                raise FileNotFoundError(
                    errno.ENOENT,
                    f"the file should be published with {file.bytes} bytes and "
                    f"{'is gone' if size is None else f'has {size}'}; another program may have changed it; write "
                    f"again, or, where an old write cannot be finished, delete {staging} to give it up",
                    str(goal),
                )

        # What readers do not see tells of the rest, so it comes after that.
        marks = [file for file in self.files if is_hidden(file.path) and file.path not in self.last]
        seen = [file for file in self.files if not is_hidden(file.path) and file.path not in self.last]
        _at_a_time(move, seen)
        _at_a_time(move, marks)
        for file in sorted((file for file in self.files if file.path in self.last), key=self._last_place):
            move(file)

    def finish(self, staging: StoragePath, target: StoragePath) -> None:
        """Delete what the moved files replace, and the journal at the very end."""
        if self.deletes:
            _flush(target, [file.path for file in self.files])
        _at_a_time(lambda name: (target / name).delete(), self.deletes)
        _remove_empty_folders(target, self.deletes)
        (target / SUCCESS_FILE).write_bytes(b"")
        (staging / _JOURNAL_FILE).delete()

    def take_back(self, staging: StoragePath, target: StoragePath) -> None:
        """Delete what was moved, so that the target is as it was before."""
        # First, so that a crash in here does not leave a journal that somebody would finish.
        replace(self, is_taken_back=True).save(staging)
        moved = [file.path for file in self.files if file.path not in self.replaced]
        _at_a_time(lambda name: (target / name).delete(), moved)
        _remove_empty_folders(target, moved)
        for name in self.replaced:
            (target / name).write_bytes((staging / _REPLACED_FOLDER / name).read_bytes())
        if self.had_success:
            (target / SUCCESS_FILE).write_bytes(b"")
        (staging / _JOURNAL_FILE).delete()

    def _last_place(self, file: WrittenFile) -> int:
        return self.last.index(file.path)


def _source(staging: StoragePath, file: WrittenFile) -> StoragePath:
    return staging / _ATTEMPTS_FOLDER / file.attempt / file.path


def _at_a_time(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do ``work`` on all of ``items``, many at a time; after an error on none that was not begun."""
    with ThreadPoolExecutor(_COPIES_AT_A_TIME) as pool:
        # list() because only who asks for the results hears of a failure.
        list(pool.map(work, items))


def _recover(staging: StoragePath, target: StoragePath) -> None:
    """End the publish of a driver that is gone."""
    journal = _Journal.find(staging)
    if journal is None:
        if (staging / _FORMER_FOLDER).exists() and (staging / _WHOLE_FOLDER).exists() and not target.exists():
            # Cut off between the two renames of a disk that cannot exchange folders.
            (staging / _WHOLE_FOLDER).rename(target)
    elif journal.is_taken_back:
        journal.take_back(staging, target)
    else:
        journal.move(staging, target)
        journal.finish(staging, target)


def _settle(staging: StoragePath, target: StoragePath) -> None:
    """End a publish that failed in a driver that is alive: it was told of the failure, and writes again.

    What has not got all its files into the target is taken back; where only old files were left to delete it is
    finished, for some of them are gone.
    """
    _restore_former(staging, target)
    journal = _Journal.find(staging)
    if journal is None:
        return
    if journal.is_taken_back or any(_source(staging, file).exists() for file in journal.files):
        journal.take_back(staging, target)
    else:
        journal.finish(staging, target)


def _was_taken_back(staging: StoragePath) -> bool:
    journal = _Journal.find(staging)
    return journal is not None and journal.is_taken_back


def _delete_remains(folder: StoragePath, *, under: StoragePath | None = None) -> None:
    """Delete a staging folder whose write is over, under another name if one is given.

    The write's outcome does not depend on it, so a failure is told in the log.
    """
    try:
        if under is not None:
            folder.rename(under)
            folder = under
        folder.delete()
    except OSError as error:
        _LOGGER.warning(
            "%s is left of a write that is over and cannot be deleted (%s): delete it by hand", folder, error
        )


def _flush(root: StoragePath, names: Iterable[str]) -> None:
    """Wait until the disk has the files of those names below ``root``, and the folders that name them."""
    files = [Path(name) for name in names]
    folders = {folder for file in files for folder in file.parents} | {Path()}
    for path in [*files, *folders]:
        (root / path.as_posix()).flush_to_disk()


def _remove_empty_folders(target: StoragePath, deleted: Sequence[str]) -> None:
    """Remove the partition folders that held nothing but deleted files; object stores have none to speak of."""
    if not target.is_local:
        return
    folders = {parent for name in deleted for parent in Path(name).parents if parent != Path()}
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        try:
            (target.local / folder).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


def _takes_name_at_once(target: StoragePath, mode: SaveMode) -> bool:
    """Whether a new folder can take the target's name, so that all files appear in one step."""
    if not target.is_local or target.local.is_mount():
        return False
    parent = target.parent.local
    if parent.exists() and not os.access(parent, os.W_OK):
        return False
    return mode is SaveMode.OVERWRITE or not holds_data(target)


def _visible_files(target: StoragePath) -> list[StoragePath]:
    files = [file.path for file in target.files()]
    return [path for path in files if not is_hidden(path.relative_to(target))]


def _replace_folder(staging: StoragePath, target: StoragePath) -> None:
    """Give the whole new folder the name ``target``; what was there stays in the staging folder."""
    new, old = (staging / _WHOLE_FOLDER).local, target.local
    new.chmod(stat.S_IMODE(old.stat().st_mode))
    if _exchange(new, old):
        return
    try:
        old.rename((staging / _FORMER_FOLDER).local)
        new.rename(old)
    except BaseException:
        _restore_former(staging, target)
        raise


def _restore_former(staging: StoragePath, target: StoragePath) -> None:
    """Put the replaced folder back into its place, where the new one has not come there."""
    if target.is_local and (staging / _FORMER_FOLDER).exists() and not target.exists():
        (staging / _FORMER_FOLDER).rename(target)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one step; return False where the system or the disk cannot.

    Source: Linux ``renameat2(2)``, ``RENAME_EXCHANGE``.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(left), None, str(right))


def _place() -> str | None:
    """Return what names the processes that this one can see, or None where the system does not tell.

    Containers may share the name of their host; the boot and the namespace of the process ids tell them apart.
    """
    try:
        boot = _BOOT_ID_FILE.read_text()
        namespace = str(_NAMESPACE_FILE.readlink())
    except OSError:
        return None
    return f"{socket.gethostname()}-{hashlib.sha256((boot + namespace).encode()).hexdigest()[:8]}"


def _owner(driver: int | None) -> str:
    """Return what names the driver: place, process id, and when it started, for the id may be given out again."""
    process = psutil.Process(driver)
    return f"{_place() or socket.gethostname()}-{process.pid}-{process.create_time():.0f}"


def _is_gone(owner: str) -> bool:
    """Whether ``owner`` is a process of this place that is gone; one of another may be at work."""
    # The name of a host may have dashes too.
    place, *numbers = owner.rsplit("-", 2)
    if place != _place() or len(numbers) < 2 or not all(number.isdecimal() for number in numbers):
        return False
    process, started = map(int, numbers)
    try:
        return abs(psutil.Process(process).create_time() - started) > _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class _Staging:
    """A staging folder that was found.

    Attributes:
        folder: Where it is.
        owner: What names its driver.
        write_id: What tells it from others of the driver.
        is_over: Whether it only was left to be deleted.
    """

    folder: StoragePath
    owner: str
    write_id: str
    is_over: bool


def _stagings(target: StoragePath, owner: str | None = None) -> list[_Staging]:
    """Return the staging folders of writes to ``target``, all or those of ``owner`` that are not over."""
    folders = target.folders()
    if target.is_local:
        folders += [folder for folder in target.parent.folders() if folder.name.endswith(f".{target.name}")]
    found = [_parsed(folder, target) for folder in folders if folder.name.startswith(_STAGING_PREFIX)]
    # A point stands for a sibling whose name ends in that of the target.
    found = [staging for staging in found if "." not in staging.write_id]
    return found if owner is None else [left for left in found if left.owner == owner and not left.is_over]


def _parsed(staging: StoragePath, target: StoragePath) -> _Staging:
    """Take apart the name of a staging folder of a write to ``target``."""
    suffix = "" if staging.parent == target else f".{target.name}"
    owner, _, write = staging.name.removeprefix(_STAGING_PREFIX).removesuffix(suffix).rpartition("-")
    write_id, mark, _ = write.partition(_OVER_MARK)
    return _Staging(staging, owner, write_id, bool(mark))

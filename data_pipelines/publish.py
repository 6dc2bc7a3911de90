"""Files of a Spark write become visible at once: attempt files in a hidden folder, one publish at the end.

Tasks write below a staging folder that readers pass over. When all of them have reported, the driver publishes the
files that they named; what killed, failed or speculative tasks left behind goes with the staging folder. On a disk a
whole new folder takes its name in one step, and the folder that it replaces stays in place until then. Where that
cannot be (an object store, a mount point, an append to what is there) the files are moved one by one, and a journal
that is written first lets the next write finish a publish that was cut off.
"""

import ctypes
import errno
import json
import os
import socket
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import uuid4

import psutil

from data_pipelines.storage import StoragePath

SUCCESS_FILE = "_SUCCESS"
"""Empty file that is written last, as Spark's own writers do: where it stands, the write before it was whole."""

_STAGING_PREFIX = ".tfrecord-write-"
_JOURNAL_FILE = "publish.json"
_ATTEMPTS_FOLDER = "attempts"
_WHOLE_FOLDER = "whole"
_FORMER_FOLDER = "former"
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

        On a disk the staging folder is made, so that a task that outlives the write cannot make it again.

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
        if mode in (SaveMode.ERROR, SaveMode.IGNORE) and _holds_data(target):
            raise TargetExistsError(target)
        folder = f"{_STAGING_PREFIX}{_owner(driver)}-{name or uuid4().hex[:8]}"
        beside = target.parent / f"{folder}.{target.name}"
        staging = beside if _takes_name_at_once(target, mode) else target / folder
        (staging / _ATTEMPTS_FOLDER).make_folder()
        return cls(target, mode, staging)

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

    def attempt_folder(self, attempt: str) -> StoragePath:
        """Return where the task attempt of that name writes its files, each at the path where it belongs."""
        return self.staging / _ATTEMPTS_FOLDER / attempt

    def attempt_file(self, attempt: str, path: str) -> StoragePath:
        """Return where the task attempt of that name writes the file that belongs at ``path``."""
        return self.attempt_folder(attempt) / path

    def publish(self, files: Sequence[WrittenFile]) -> None:
        """Make ``files`` the content of the target, or part of it, and remove the staging folder.

        Raises:
            TargetExistsError: The mode is ``error`` or ``ignore``, and there is data by now.
            OSError: The store refuses; what was at the target is still there.
        """
        takes_name = self.staging.parent != self.target
        if self.mode in (SaveMode.ERROR, SaveMode.IGNORE) and _holds_data(self.target):
            raise TargetExistsError(self.target)
        if takes_name and not (self.mode is SaveMode.APPEND and _holds_data(self.target)):
            self._publish_folder(files)
        else:
            self._publish_files(files)
        self._remove_staging()

    def abort(self) -> None:
        """Remove the staging folder, unless a publish has begun: the next write finishes that one."""
        if not (self.staging / _JOURNAL_FILE).exists():
            self._remove_staging()

    def _remove_staging(self) -> None:
        # Spark ends the tasks of a failed write some time after it tells of the failure. Under another name, none of
        # them puts a file into a folder that is being emptied.
        if self.staging.is_local and self.staging.exists():
            gone = self.staging.parent / f"{self.staging.name}.gone"
            self.staging.rename(gone)
            gone.delete()
        else:
            self.staging.delete()

    def _publish_folder(self, files: Sequence[WrittenFile]) -> None:
        whole = self.staging / _WHOLE_FOLDER
        whole.make_folder()
        for file in files:
            self.attempt_file(file.attempt, file.path).rename(whole / file.path)
        (whole / SUCCESS_FILE).write_bytes(b"")
        if self.mode is SaveMode.OVERWRITE and self.target.exists():
            for file in files:
                # The data that it replaces is deleted next.
                (whole / file.path).flush_to_disk()
            _replace_folder(whole.local, self.target.local, self.staging.local / _FORMER_FOLDER)
            return
        try:
            whole.rename(self.target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Another write was faster by a moment; the next append finds its files.
            raise TargetExistsError(self.target) from error

    def _publish_files(self, files: Sequence[WrittenFile]) -> None:
        former = _visible_files(self.target) if self.mode is SaveMode.OVERWRITE else []
        moves = [(f"{_ATTEMPTS_FOLDER}/{file.attempt}/{file.path}", file.path) for file in files]
        journal = {"moves": moves, "deletes": [path.relative_to(self.target) for path in former]}
        (self.staging / _JOURNAL_FILE).write_bytes(json.dumps(journal).encode())
        _finish_publish(self.staging, self.target)


def recover(target: StoragePath) -> None:
    """Finish or remove what writes to ``target`` left behind whose driver on this host is gone.

    A write that had begun to publish is finished; of any other nothing becomes visible.
    """
    abandoned = _abandoned(target, suffix="")
    if target.is_local:
        abandoned += _abandoned(target.parent, suffix=f".{target.name}")
    for staging in abandoned:
        if (staging / _JOURNAL_FILE).exists():
            _finish_publish(staging, target)
        elif (staging / _FORMER_FOLDER).exists() and not target.exists():
            # Cut off between the two renames of a disk that cannot exchange folders.
            (staging / _WHOLE_FOLDER).rename(target)
        staging.delete()


def is_hidden(relative_path: str) -> bool:
    """Return whether readers pass over a file: a part of its path begins with ``.`` or ``_``, as Spark has it.

    Folders of a partition column whose name begins with ``_`` are seen (``_day=3/``).
    """
    *folders, name = relative_path.split("/")
    return name.startswith((".", "_")) or any(
        folder.startswith(".") or (folder.startswith("_") and "=" not in folder) for folder in folders
    )


def _finish_publish(staging: StoragePath, target: StoragePath) -> None:
    journal = json.loads((staging / _JOURNAL_FILE).read_bytes())
    (target / SUCCESS_FILE).delete()

    def move(names: Sequence[str]) -> None:
        source = staging / names[0]
        # A publish that was cut off has moved some already.
        if source.exists():
            source.rename(target / names[1])

    # What readers do not see tells of the rest, so it comes last.
    marks = [names for names in journal["moves"] if is_hidden(names[1])]
    seen = [names for names in journal["moves"] if not is_hidden(names[1])]
    with ThreadPoolExecutor(_COPIES_AT_A_TIME) as pool:
        # list() because only who asks for the results hears of a failure.
        list(pool.map(move, seen))
        list(pool.map(move, marks))
        list(pool.map(lambda name: (target / name).delete(), journal["deletes"]))
    _remove_empty_folders(target, journal["deletes"])
    (target / SUCCESS_FILE).write_bytes(b"")


def _remove_empty_folders(target: StoragePath, deleted: Sequence[str]) -> None:
    """Remove the partition folders that held nothing but deleted files; object stores have none."""
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
    return mode is SaveMode.OVERWRITE or not _holds_data(target)


def _holds_data(target: StoragePath) -> bool:
    if target.is_local:
        return target.exists() and any(not entry.name.startswith(_STAGING_PREFIX) for entry in target.local.iterdir())
    return bool(_visible_files(target)) or (target / SUCCESS_FILE).exists()


def _visible_files(target: StoragePath) -> list[StoragePath]:
    files = [file.path for file in target.files()]
    return [path for path in files if not is_hidden(path.relative_to(target))]


def _replace_folder(new: Path, target: Path, former: Path) -> None:
    """Give ``new`` the name ``target``; what was there stays in the staging folder, as ``new`` or as ``former``."""
    new.chmod(stat.S_IMODE(target.stat().st_mode))
    if not _exchange(new, target):
        target.rename(former)
        new.rename(target)


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


def _owner(driver: int | None) -> str:
    """Return what names the driver: host, process id, and when it started, for the id may be given out again."""
    process = psutil.Process(driver)
    return f"{socket.gethostname()}-{process.pid}-{process.create_time():.0f}"


def _is_gone(owner: str) -> bool:
    """Whether ``owner`` is a process of this host that is gone; one of another host may be at work."""
    # The name of a host may have dashes too.
    host, *numbers = owner.rsplit("-", 2)
    if host != socket.gethostname() or len(numbers) < 2 or not all(number.isdecimal() for number in numbers):
        return False
    process, started = map(int, numbers)
    try:
        return abs(psutil.Process(process).create_time() - started) > _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True


def _abandoned(folder: StoragePath, suffix: str) -> list[StoragePath]:
    """Return the staging folders below ``folder`` whose driver on this host is gone."""
    found = []
    for name in _folder_names(folder):
        owner, _, write_id = name.removeprefix(_STAGING_PREFIX).removesuffix(suffix).rpartition("-")
        if name.startswith(_STAGING_PREFIX) and name.endswith(suffix) and "." not in write_id and _is_gone(owner):
            found.append(folder / name)
    return found


def _folder_names(folder: StoragePath) -> list[str]:
    if folder.is_local:
        return [entry.name for entry in folder.local.iterdir()] if folder.local.is_dir() else []
    return sorted({file.path.relative_to(folder).partition("/")[0] for file in folder.files()})

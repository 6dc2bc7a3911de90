"""The hidden folder of a write, and the lease file in it by which its owner holds it."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import uuid4

from mirrorspark.clear_error import ClearError
from mirrorspark.storage.abilities import can_rename
from mirrorspark.storage.lease import Heartbeat, Holder, lease_content
from mirrorspark.storage.paths import StoragePath, leads_out

SUCCESS_FILE = "_SUCCESS"
"""Empty file that is written last, as Spark's own writers do; its presence shows that the last write was complete."""

STAGING_PREFIX = ".tfrecord-write-"
"""Prefix of the name of a write's hidden folder."""

ATTEMPTS_FOLDER = "attempts"
"""Folder in a staging folder to which tasks write."""

WHOLE_FOLDER = "whole"
"""Folder in a staging folder that is to become the target."""

FORMER_FOLDER = "former"
"""Folder in a staging folder that was the target and has been replaced."""

LEASE_FILE = "lease.json"

OPEN_FILE = "open"
"""Empty file in the staging folder of a store without renames; while it is missing, the other files do not count."""

# End of the id of a write on a file system that cannot rename.
_COPIES_MARK = "+"
# Part of the name of a staging folder whose write is over and whose content can be deleted.
_OVER_MARK = "~"

_LOGGER = logging.getLogger(__name__)


class UnsafeJournalError(ClearError, ValueError):
    """A journal that none of our writes can have produced."""


@dataclass(frozen=True)
class Staging:
    """The hidden folder of a write."""

    folder: StoragePath
    target: StoragePath

    @classmethod
    def of(cls, target: StoragePath, write_id: str, *, is_beside: bool) -> "Staging":
        """Return the staging folder of the write with that id, next to the target or below it."""
        copies = target.is_local and not can_rename(target.local)
        name = f"{STAGING_PREFIX}{write_id}{_COPIES_MARK if copies else ''}"
        return cls(target.parent / f"{name}.{target.name}" if is_beside else target / name, target)

    @property
    def is_beside(self) -> bool:
        """True if the folder is next to the target, False if it is below it."""
        return self.folder.parent != self.target

    @property
    def write_id(self) -> str:
        """Id of the write, unique for its target."""
        suffix = f".{self.target.name}" if self.is_beside else ""
        return self.folder.name.removeprefix(STAGING_PREFIX).removesuffix(suffix)

    @property
    def write_name(self) -> str:
        """The part of the id that its owner chose, if it chose one."""
        return self.write_id.partition("-")[0]

    @property
    def lease_file(self) -> StoragePath:
        """The file that the owner rewrites."""
        return self.folder / LEASE_FILE

    @property
    def owner(self) -> Holder | None:
        """The current or last holder of the lease; None if no lease can be read."""
        heartbeat = Heartbeat.parse(lease_content(self.lease_file))
        return heartbeat.holder if heartbeat else None

    @property
    def is_over(self) -> bool:
        """True if the write is over and the folder only remains to be deleted."""
        return _OVER_MARK in self.write_id

    def remove(self) -> None:
        """Delete the folder of a write that is over; a failure is only logged, because nothing depends on it."""
        over = self
        try:
            # Spark ends the tasks of a failed write some time after it reports the failure. Renaming keeps them from
            # adding files to the folder while it is deleted. If the deletion is cut off, the next write completes it.
            if renames(self.folder) and not self.is_over:
                over = self.renamed(f"{self.write_id}{_OVER_MARK}")
                self.folder.rename(over.folder)
            close_write(over.folder)
            over.folder.delete()
        except FileNotFoundError:
            return
        except OSError as error:
            _LOGGER.warning(
                "%s is left of a write that is over and cannot be deleted (%s): delete it by hand", over.folder, error
            )

    def renamed(self, write_id: str = "") -> "Staging":
        """Return the folder under a new name; its id begins with ``write_id``."""
        return Staging.of(self.target, f"{write_id}{uuid4().hex[:8]}", is_beside=self.is_beside)


def renames(staging: StoragePath) -> bool:
    """Return whether the staging folder can be renamed; else its files are copied, as on an object store."""
    return staging.is_local and not staging.name.endswith(_COPIES_MARK)


def open_write(staging: StoragePath) -> None:
    """Make the files of a new staging folder count."""
    if not renames(staging):
        (staging / OPEN_FILE).write_bytes(b"")


def close_write(staging: StoragePath) -> None:
    """Make everything in a staging folder void, even if a process writes to it later."""
    if not renames(staging):
        (staging / OPEN_FILE).delete()


def is_open(staging: StoragePath) -> bool:
    """Return whether the content of a staging folder counts."""
    return renames(staging) or (staging / OPEN_FILE).is_file()


def stagings(target: StoragePath) -> list[Staging]:
    """Return the staging folders of writes to ``target``."""
    folders = target.folders()
    if target.is_local:
        folders += [folder for folder in target.parent.folders() if folder.name.endswith(f".{target.name}")]
    found = [Staging(folder, target) for folder in folders if folder.name.startswith(STAGING_PREFIX)]
    # An id with a dot belongs to a sibling whose name ends in that of the target.
    return [staging for staging in found if "." not in staging.write_id]


def is_hidden(relative_path: str) -> bool:
    """Return whether readers ignore a file: a part of its path begins with ``.`` or ``_``, which is Spark's rule.

    Folders of a partition column whose name begins with ``_`` (``_day=3/``) are visible.
    """
    *folders, name = relative_path.split("/")
    return name.startswith((".", "_")) or any(
        folder.startswith(".") or (folder.startswith("_") and "=" not in folder) for folder in folders
    )


def check_inside(paths: Iterable[str]) -> None:
    """Make sure that relative paths stay in their folder.

    Raises:
        UnsafeJournalError: A path is absolute, or has a part ``..``.
    """
    for path in paths:
        if not isinstance(path, str) or {"", ".", ".."} & {*path.split("/")} or leads_out(path):
            raise UnsafeJournalError(f"{path!r} is not a path inside the target folder")

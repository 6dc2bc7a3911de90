"""The target folder of a write: save modes, existing data, and hidden files."""

from dataclasses import dataclass
from enum import StrEnum

from mirrorspark.storage.paths import StoragePath

SUCCESS_FILE = "_SUCCESS"
"""Empty file that is written last, as Spark's own writers do; its presence shows that the last write was complete."""

STAGING_PREFIX = ".tfrecord-write-"
"""Prefix of the name of a write's hidden folder."""


class SaveMode(StrEnum):
    """Treatment of existing data by a write, in Spark's words."""

    ERROR = "error"
    APPEND = "append"
    OVERWRITE = "overwrite"
    IGNORE = "ignore"

    @classmethod
    def of(cls, mode: str) -> "SaveMode":
        """Return the mode with that name; ``errorifexists`` and ``default`` are aliases of ``error``.

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
    """The target has data, and the save mode does not allow changing it."""

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


def holds_data(target: StoragePath) -> bool:
    """Return whether ``target`` has data: anything except empty folders and the staging folders of writes."""
    if target.is_file():
        return True
    if target.is_local:
        return target.exists() and any(not entry.name.startswith(STAGING_PREFIX) for entry in target.local.iterdir())
    # Folder by folder, so that the first file ends the listing.
    return bool(target.files(recursive=False)) or any(
        folder.files() for folder in target.folders() if not folder.name.startswith(STAGING_PREFIX)
    )


def is_hidden(relative_path: str) -> bool:
    """Return whether readers ignore a file: a part of its path begins with ``.`` or ``_``, which is Spark's rule.

    Folders of a partition column whose name begins with ``_`` (``_day=3/``) are visible.
    """
    *folders, name = relative_path.split("/")
    return name.startswith((".", "_")) or any(
        folder.startswith(".") or (folder.startswith("_") and "=" not in folder) for folder in folders
    )

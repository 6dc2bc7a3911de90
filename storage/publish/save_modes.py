"""Save modes: the treatment of data that a write finds at its target."""

from enum import StrEnum

from mirrorspark.clear_error import ClearError
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.staging import STAGING_PREFIX


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


class TargetExistsError(ClearError, FileExistsError):
    """The target has data, and the save mode does not allow changing it."""

    def __init__(self, target: StoragePath) -> None:
        super().__init__(
            f"{target} exists already; use mode 'overwrite' to replace it, 'append' to add to it, or another path"
        )
        self.target = target

    def __reduce__(self) -> tuple[type["TargetExistsError"], tuple[StoragePath]]:
        """Pickle by the target: the message alone does not rebuild the error."""
        return TargetExistsError, (self.target,)


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

"""All-or-nothing writes: the files of a Spark write become visible together or not at all, even after a crash.

Tasks write into a staging folder, and the driver publishes it. The next writer finishes or undoes a dead one's write.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.storage.publish.job import WriteJob, WrittenFile
    from mirrorspark.storage.publish.journal import JOURNAL_FILE, Journal
    from mirrorspark.storage.publish.recovery import (
        ForeignStagingError,
        WriteInProgressError,
        clear,
        is_foreign,
        living,
        state_of,
    )
    from mirrorspark.storage.publish.save_modes import SaveMode, TargetExistsError, holds_data
    from mirrorspark.storage.publish.staging import (
        OPEN_FILE,
        STAGING_PREFIX,
        SUCCESS_FILE,
        UnsafeJournalError,
        is_hidden,
        is_open,
        renames,
        stagings,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "JOURNAL_FILE",
    "OPEN_FILE",
    "STAGING_PREFIX",
    "SUCCESS_FILE",
    "ForeignStagingError",
    "Journal",
    "SaveMode",
    "TargetExistsError",
    "UnsafeJournalError",
    "WriteInProgressError",
    "WriteJob",
    "WrittenFile",
    "clear",
    "holds_data",
    "is_foreign",
    "is_hidden",
    "is_open",
    "living",
    "renames",
    "stagings",
    "state_of",
]

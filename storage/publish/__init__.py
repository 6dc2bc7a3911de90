"""All-or-nothing writes: the files of a Spark write become visible together or not at all, even after a crash."""

from mirrorspark.storage.publish.job import SaveMode, TargetExistsError, WriteJob, WrittenFile, holds_data
from mirrorspark.storage.publish.recovery import ForeignStagingError, WriteInProgressError
from mirrorspark.storage.publish.staging import SUCCESS_FILE, LeaseLostError, Timing, UnsafeJournalError, is_hidden

__all__ = [
    "SUCCESS_FILE",
    "ForeignStagingError",
    "LeaseLostError",
    "SaveMode",
    "TargetExistsError",
    "Timing",
    "UnsafeJournalError",
    "WriteInProgressError",
    "WriteJob",
    "WrittenFile",
    "holds_data",
    "is_hidden",
]

"""All-or-nothing writes: the files of a Spark write become visible together or not at all, even after a crash."""

from mirrorspark.storage.publish.job import WriteJob
from mirrorspark.storage.publish.journal import UnsafeJournalError
from mirrorspark.storage.publish.lease import LeaseLostError, Timing
from mirrorspark.storage.publish.recovery import ForeignStagingError, WriteInProgressError
from mirrorspark.storage.publish.targets import (
    SUCCESS_FILE,
    SaveMode,
    TargetExistsError,
    WrittenFile,
    holds_data,
    is_hidden,
)

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

"""Files on any store: paths, atomic writes, listings, a cache per machine.

A published write is complete or invisible, even if a process dies. Nothing here imports Spark or TensorFlow.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.storage import atomic_file, host_cache, lakes, listing, out_of_memory, terminal_text
    from mirrorspark.storage.credentials import HIDDEN, clean, is_secret_name, one_line, without_credentials
    from mirrorspark.storage.event_file import FOR_MLFLOW, Event, EventFile, EventTail
    from mirrorspark.storage.lease import LeaseLostError, running_seconds
    from mirrorspark.storage.paths import (
        Location,
        StorageError,
        StoragePath,
        StoredFile,
        StoreUnreachableError,
        hadoop_path,
        hadoop_uri,
        leads_out,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FOR_MLFLOW",
    "HIDDEN",
    "Event",
    "EventFile",
    "EventTail",
    "LeaseLostError",
    "Location",
    "StorageError",
    "StoragePath",
    "StoreUnreachableError",
    "StoredFile",
    "atomic_file",
    "clean",
    "hadoop_path",
    "hadoop_uri",
    "host_cache",
    "is_secret_name",
    "lakes",
    "leads_out",
    "listing",
    "one_line",
    "out_of_memory",
    "running_seconds",
    "terminal_text",
    "without_credentials",
]

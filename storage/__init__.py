"""Files on any store: paths, atomic writes, listings, a cache per machine.

A published write is complete or invisible, even if a process dies. Nothing here imports Spark or TensorFlow.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.storage import (
        abilities,
        atomic_file,
        event_file,
        file_names,
        host_cache,
        lakes,
        listing,
        out_of_memory,
        signed_content,
        terminal_text,
    )
    from mirrorspark.storage.credentials import HIDDEN, clean, is_secret_name, one_line, without_credentials
    from mirrorspark.storage.event_file import FOR_MLFLOW, Event, EventFile, EventTail
    from mirrorspark.storage.hadoop_uris import hadoop_path, hadoop_uri, literal_hadoop_uri
    from mirrorspark.storage.lease import (
        Holder,
        LeaseLostError,
        LockState,
        Timing,
        boot_id,
        file_lock,
        lock_state,
        renewed,
        running_seconds,
    )
    from mirrorspark.storage.near_names import each_meant, lacking, likely_meant, meant, nearest
    from mirrorspark.storage.paths import (
        Location,
        StorageError,
        StoragePath,
        StoredFile,
        StoreUnreachableError,
        leads_out,
    )
    from mirrorspark.storage.text_file import encoding_of, read_text
    from mirrorspark.storage.yaml_text import UniqueKeyLoader, load_yaml
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FOR_MLFLOW",
    "HIDDEN",
    "Event",
    "EventFile",
    "EventTail",
    "Holder",
    "LeaseLostError",
    "Location",
    "LockState",
    "StorageError",
    "StoragePath",
    "StoreUnreachableError",
    "StoredFile",
    "Timing",
    "UniqueKeyLoader",
    "abilities",
    "atomic_file",
    "boot_id",
    "clean",
    "each_meant",
    "encoding_of",
    "event_file",
    "file_lock",
    "file_names",
    "hadoop_path",
    "hadoop_uri",
    "host_cache",
    "is_secret_name",
    "lacking",
    "lakes",
    "leads_out",
    "likely_meant",
    "listing",
    "literal_hadoop_uri",
    "load_yaml",
    "lock_state",
    "meant",
    "nearest",
    "one_line",
    "out_of_memory",
    "read_text",
    "renewed",
    "running_seconds",
    "signed_content",
    "terminal_text",
    "without_credentials",
]

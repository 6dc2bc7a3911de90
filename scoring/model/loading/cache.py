"""Cache of the models that this process has loaded, and its settings for them."""

import gc
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from mirrorspark.clear_error import ClearError
from mirrorspark.scoring.backends import library
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored import folder_digest

CACHED_BYTES = 2 * 1024**3


class ModelChangedError(ClearError, RuntimeError):
    """Raised when the files of a model differ from those that were pinned."""


class ModelCache:
    """Loaded models by digest, with eviction of the least recently used. Thread-safe.

    Args:
        capacity_bytes: Limit for the total size of the models' folders. The newest model stays, whatever its size.
    """

    def __init__(self, capacity_bytes: int = CACHED_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._models: OrderedDict[str, tuple[LoadedModel, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._loads = self._drops = 0

    @property
    def loads(self) -> int:
        """Number of models loaded so far."""
        return self._loads

    @property
    def drops(self) -> int:
        """Number of models evicted so far."""
        return self._drops

    def get(self, digest: str, size_bytes: int, load: Callable[[], LoadedModel]) -> LoadedModel:
        """Return the model with ``digest``; call ``load`` if it is not cached."""
        # The lock is held while loading, so that a second thread waits instead of loading the model again.
        with self._lock:
            if digest not in self._models:
                self._models[digest] = (load(), size_bytes)
                self._bytes += size_bytes
                self._loads += 1
            self._models.move_to_end(digest)
            while len(self._models) > 1 and self._bytes > self._capacity_bytes:
                _, dropped = self._models.popitem(last=False)
                self._bytes -= dropped[1]
                self._drops += 1
            return self._models[digest][0]

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            return digest in self._models


# This is module state, like the cached digests: Spark reuses Python workers with their imported modules, and nothing
# else of a task survives it.
PROCESS_CACHE = ModelCache()


def load_once(
    folder: Path,
    digest: str,
    *,
    threads: int | None = None,
    on_load: Callable[[LoadedModel], None] | None = None,
    cache: ModelCache = PROCESS_CACHE,
) -> LoadedModel:
    """Return the model with ``digest``, loaded at most once in this process while the cache holds it.

    Args:
        folder: Folder of the model.
        digest: The pinned digest.
        threads: See :class:`LoadedModel`.
        on_load: Called with the model after each load.
        cache: Holds the loaded models.

    Raises:
        ModelChangedError: The files in ``folder`` have another digest.
    """

    def load() -> LoadedModel:
        found = folder_digest(folder)
        if found != digest:
            raise ModelChangedError(
                f"the model in {folder} on {socket.gethostname()} has the digest {found[:12]}, pinned was "
                f"{digest[:12]}: its files were changed or damaged since; resolve the model's URI again (if this is an "
                f"executor's copy, in a new session)"
            )
        model = LoadedModel(folder, threads=threads)
        if on_load is not None:
            on_load(model)
        return model

    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return cache.get(digest, size_bytes, load)


def limit_numeric_libraries(threads: int | None) -> None:
    """Limit BLAS and OpenMP to the threads of the task; None leaves them unchanged.

    NumPy and many libraries of MLflow models have no such setting of their own. The limit applies to the whole process,
    which is right for a Python worker of Spark but not for a user's process.
    """
    if threads is not None:
        library("threadpoolctl", "scoring needs threadpoolctl").threadpool_limits(threads)


def freeze_gc(*, has_dropped: bool) -> None:
    """Exempt all current objects from garbage collection.

    Spark's Python daemon collects after every task and traverses the 340,000 objects of TensorFlow each time. An empty
    task takes 210 ms of CPU, and 2 ms when they are frozen.

    Args:
        has_dropped: Whether the cache has evicted a model. Frozen cycles are never freed, so they are unfrozen and
            collected first. This traverses all objects, which is too slow to repeat for each of thousands of models.
    """
    if has_dropped:
        gc.unfreeze()
    gc.collect()
    gc.freeze()

"""Models that this process has loaded: each once, as long as there is room."""

import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from scoring.loaded_model import LoadedModel
from scoring.model_directory import folder_digest

CACHED_BYTES = 2 * 1024**3


class ModelChangedError(RuntimeError):
    """The files of a model are not those that were pinned."""


class ModelCache:
    """Loaded models by digest, the least recently used out first. Safe from several threads.

    Args:
        capacity_bytes: Size of the folders of all models kept. The newest stays, however large it is.
    """

    def __init__(self, capacity_bytes: int = CACHED_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._models: OrderedDict[str, tuple[LoadedModel, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._loads = self._drops = 0

    @property
    def loads(self) -> int:
        """How many models have been loaded so far."""
        return self._loads

    @property
    def drops(self) -> int:
        """How many models have been let go so far."""
        return self._drops

    def get(self, digest: str, size_bytes: int, load: Callable[[], LoadedModel]) -> LoadedModel:
        """Return the model with ``digest``; call ``load`` when it is not here."""
        # Held while loading, so that a second thread waits for the model instead of loading it again.
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


# State of a module, as kept digests are: Spark keeps its Python workers, and what they import, from task to task, and
# nothing else of a task survives it.
PROCESS_CACHE = ModelCache()


def load_once(
    folder: Path,
    digest: str,
    *,
    threads: int | None = None,
    on_load: Callable[[LoadedModel], None] | None = None,
    cache: ModelCache = PROCESS_CACHE,
) -> LoadedModel:
    """Return the model with ``digest``, loaded at most once in this process while the cache keeps it.

    Args:
        folder: Where its files are.
        digest: The digest that was pinned.
        threads: As for :class:`LoadedModel`.
        on_load: Called with the model after each load.
        cache: Where loaded models stay.

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

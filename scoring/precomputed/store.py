"""Look-up of precomputed rows by key, in one SQLite file and without Spark.

:func:`scoring.precomputed.precompute.precompute` writes a store. A store never changes; a new one replaces it in one
step.
"""

import json
import logging
import operator
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FORMAT = 1
INTEGER, TEXT = "int64", "string"
"""Arrow names of the key types."""

METADATA_TABLE = "CREATE TABLE metadata (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)"
# The integer key of a plain table is its row id, which is SQLite's fastest access. Strings need an index, and a table
# without row ids is that index (sqlite.org/withoutrowid.html).
ROWS_TABLES: Mapping[str, str] = {
    INTEGER: "CREATE TABLE rows (key INTEGER PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
    TEXT: "CREATE TABLE rows (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) WITHOUT ROWID",
}

_LOGGER = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0
_INTEGERS = range(-(2**63), 2**63)


class StoreError(ValueError):
    """Raised for an invalid store, or a table that cannot become one; the message gives the remedy."""


class Row(dict[str, Any]):
    """A row as a dict of its columns.

    Attributes:
        is_fallback: Whether the key is unknown and this is the fallback.
    """

    __slots__ = ("is_fallback",)

    def __init__(self, columns: Iterable[tuple[str, Any]], *, is_fallback: bool) -> None:
        super().__init__(columns)
        self.is_fallback = is_fallback


@dataclass(frozen=True)
class StoreMetadata:
    """Metadata of a store.

    Attributes:
        columns: Arrow type by column; the first is the key.
        rows: Number of rows.
        model_versions: Distinct values of the column ``model_version``.
        created: Time of writing in UTC, in ISO 8601.
        fallback: The columns after the key for unknown keys, as JSON; None without a fallback.
    """

    columns: Mapping[str, str]
    rows: int
    model_versions: tuple[str, ...]
    created: str
    fallback: str | None

    @property
    def key(self) -> str:
        """Name of the key column."""
        return next(iter(self.columns))

    @property
    def key_type(self) -> str:
        """``int64`` or ``string``."""
        return self.columns[self.key]

    def save(self, connection: sqlite3.Connection) -> None:
        """Write the metadata into a new store."""
        document = asdict(self) | {"format": FORMAT}
        connection.execute(METADATA_TABLE)
        rows = [(name, json.dumps(value)) for name, value in document.items()]
        connection.executemany("INSERT INTO metadata VALUES (?, ?)", rows)

    @classmethod
    def load(cls, connection: sqlite3.Connection) -> "StoreMetadata":
        """Read the metadata.

        Raises:
            StoreError: The store has another format.
            sqlite3.Error: The file is not a store.
        """
        document = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM metadata")}
        found = document.get("format")
        if found != FORMAT:
            raise StoreError(f"it has format {found}, and this version reads {FORMAT}; write it again")
        values = {field.name: document[field.name] for field in fields(cls)}
        return cls(**values | {"model_versions": tuple(values["model_versions"])})


class PrecomputedScores:
    """Look-up of rows in a store by key. Thread-safe.

    A look-up notices within a second that a new store has replaced the open one.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Open a store; ``clock`` is a monotonic clock in seconds."""
        self._path = Path(path).absolute()
        self._clock = clock
        self._lock = threading.Lock()
        self._store = _Store.open(self._path)
        self._next_check = clock() + _CHECK_SECONDS

    @classmethod
    def open(cls, path: str | Path) -> "PrecomputedScores":
        """Open the store at ``path``.

        Raises:
            FileNotFoundError: The file does not exist.
            StoreError: The file is not a store, or has another format.
        """
        return cls(path)

    def get(self, key: int | str) -> Row | None:
        """Return the row of ``key``; for an unknown key the fallback (``is_fallback`` is true), or None without one.

        Raises:
            TypeError: The store has keys of another type.
        """
        return self.get_many([key])[0]

    def get_many(self, keys: Iterable[int | str]) -> list[Row | None]:
        """Return the result of :meth:`get` for each key, in order and all from the same store.

        Raises:
            TypeError: As for :meth:`get`.
        """
        wanted = list(keys)
        with self._lock:
            store = self._current()
            return [store.row(key) for key in wanted]

    @property
    def metadata(self) -> StoreMetadata:
        """What the store says of itself."""
        with self._lock:
            return self._current().metadata

    def reload(self) -> None:
        """Check for a new store now.

        Raises:
            FileNotFoundError: The file is gone. The open store stays in use, here and in the next case.
            StoreError: The new file is not a store, or has another format.
        """
        with self._lock:
            self._reload()

    def close(self) -> None:
        """Close the store, which cannot be used afterwards."""
        with self._lock:
            self._store.connection.close()
            self._next_check = float("inf")

    def __enter__(self) -> "PrecomputedScores":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current(self) -> "_Store":
        now = self._clock()
        if now >= self._next_check:
            self._next_check = now + _CHECK_SECONDS
            try:
                self._reload()
            except (OSError, StoreError) as error:
                # A look-up does not fail for this, because the open store still answers.
                _LOGGER.warning("the open store stays in use, because the new one cannot be opened: %s", error)
        return self._store

    def _reload(self) -> None:
        if _identity(self._path) == self._store.identity:
            return
        former, self._store = self._store, _Store.open(self._path)
        former.connection.close()
        _LOGGER.info("%s has been replaced: %s", self._path, self._store.metadata)


@dataclass(frozen=True)
class _Store:
    """An open store.

    Attributes:
        identity: Identity of the file, which differs for a replacement of the same name.
    """

    identity: tuple[int, int, int]
    connection: sqlite3.Connection
    metadata: StoreMetadata

    @classmethod
    def open(cls, path: Path) -> "_Store":
        """Open the file, which stays open when another one replaces it."""
        # The identity is read first, so that a replacement in between is noticed at the next check.
        identity = _identity(path)
        connection: sqlite3.Connection | None = None
        try:
            # The file never changes, so SQLite needs neither a lock nor a journal.
            uri = f"{path.as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            return cls(identity, connection, StoreMetadata.load(connection))
        except (sqlite3.Error, StoreError) as error:
            if connection is not None:
                connection.close()
            raise StoreError(
                f"{path} is no store of rows: {error}; write one with mirrorspark.scoring.precomputed.precompute"
            ) from error

    def row(self, key: int | str) -> Row | None:
        """Return the row of ``key``, the fallback, or None."""
        wanted = self._checked(key)
        found = None
        if isinstance(wanted, str) or wanted in _INTEGERS:
            found = self.connection.execute("SELECT value FROM rows WHERE key = ?", (wanted,)).fetchone()
        text = self.metadata.fallback if found is None else found[0]
        if text is None:
            return None
        return Row(zip(self.metadata.columns, [wanted, *json.loads(text)], strict=True), is_fallback=found is None)

    def _checked(self, key: int | str) -> int | str:
        if self.metadata.key_type == TEXT:
            if isinstance(key, str):
                return key
        else:
            try:
                # operator.index accepts NumPy's integers too.
                return operator.index(key)  # type: ignore[arg-type]
            except TypeError:
                pass
        raise TypeError(
            f"the key {key!r} is {type(key).__name__}, and column '{self.metadata.key}' of the store is "
            f"{self.metadata.key_type}; convert it"
        )


def _identity(path: Path) -> tuple[int, int, int]:
    """Return an identity that differs for a replacement of the same name.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no store of rows at {path}; write one with mirrorspark.scoring.precomputed.precompute"
        ) from error
    return found.st_dev, found.st_ino, found.st_mtime_ns

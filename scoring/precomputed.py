"""Rows that were computed before they are asked for, by their key, in a process: one SQLite file, and no Spark.

A store is written by :func:`scoring.precompute.precompute` and never changed; a new one takes its name in one step.
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
"""Types of keys, by their names in Arrow."""

METADATA_TABLE = "CREATE TABLE metadata (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)"
# The integer key of a plain table is its row id, the fastest way to a row that SQLite has. Texts need an index, and
# without row ids the table is that index (sqlite.org/withoutrowid.html).
ROWS_TABLES: Mapping[str, str] = {
    INTEGER: "CREATE TABLE rows (key INTEGER PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
    TEXT: "CREATE TABLE rows (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) WITHOUT ROWID",
}

_LOGGER = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
_INTEGERS = range(-(2**63), 2**63)


class StoreError(ValueError):
    """A store, or a table that is to become one, that is not what it has to be; the message says what to do."""


class Row(dict[str, Any]):
    """One row: its columns by name.

    Attributes:
        is_fallback: Whether the key is unknown, and this is what is said of all such keys.
    """

    __slots__ = ("is_fallback",)

    def __init__(self, columns: Iterable[tuple[str, Any]], *, is_fallback: bool) -> None:
        super().__init__(columns)
        self.is_fallback = is_fallback


@dataclass(frozen=True)
class StoreMetadata:
    """What a store says of itself.

    Attributes:
        columns: Name and Arrow type of each column; the first is the key.
        rows: How many there are.
        model_versions: What stands in the column ``model_version``, each once.
        created: When it was written, in UTC, as ISO 8601 has it.
        fallback: The columns behind the key of unknown keys, as JSON; None where these have no row.
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
        """Write it into a store that has none yet."""
        told = asdict(self) | {"format": FORMAT}
        connection.execute(METADATA_TABLE)
        rows = [(name, json.dumps(value)) for name, value in told.items()]
        connection.executemany("INSERT INTO metadata VALUES (?, ?)", rows)

    @classmethod
    def load(cls, connection: sqlite3.Connection) -> "StoreMetadata":
        """Read it.

        Raises:
            StoreError: The store has another format.
            sqlite3.Error: It is no store.
        """
        told = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM metadata")}
        found = told.get("format")
        if found != FORMAT:
            raise StoreError(f"it has format {found}, and this version reads {FORMAT}; write it again")
        values = {field.name: told[field.name] for field in fields(cls)}
        return cls(**values | {"model_versions": tuple(values["model_versions"])})


class PrecomputedScores:
    """The rows of a store by their key; safe from several threads.

    A new store that has taken the name of the one that is open is noticed within a second, when somebody asks.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Open a store; ``clock`` gives seconds that only grow."""
        self._path = Path(path).absolute()
        self._clock = clock
        self._lock = threading.Lock()
        self._store = _Store.open(self._path)
        self._next_look = clock() + _SECONDS_BETWEEN_LOOKS

    @classmethod
    def open(cls, path: str | Path) -> "PrecomputedScores":
        """Open the store at ``path``.

        Raises:
            FileNotFoundError: There is none.
            StoreError: The file is no store, or has another format.
        """
        return cls(path)

    def get(self, key: int | str) -> Row | None:
        """Return the row of ``key``; of an unknown key the fallback (``is_fallback`` is true), or None without one.

        Raises:
            TypeError: The store's keys are of another type.
        """
        return self.get_many([key])[0]

    def get_many(self, keys: Iterable[int | str]) -> list[Row | None]:
        """Return what :meth:`get` does for each key, in their order, all from one store.

        Raises:
            TypeError: As there.
        """
        wanted = list(keys)
        with self._lock:
            store = self._newest()
            return [store.row(key) for key in wanted]

    @property
    def metadata(self) -> StoreMetadata:
        """What the store says of itself."""
        with self._lock:
            return self._newest().metadata

    def reload(self) -> None:
        """Look now whether there is a new store.

        Raises:
            FileNotFoundError: There is none any more. The one that was open stays so, here and in the next case.
            StoreError: The new one is none, or has another format.
        """
        with self._lock:
            self._reload()

    def close(self) -> None:
        """Close the store; nothing can be asked afterwards."""
        with self._lock:
            self._store.connection.close()
            self._next_look = float("inf")

    def __enter__(self) -> "PrecomputedScores":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _newest(self) -> "_Store":
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + _SECONDS_BETWEEN_LOOKS
            try:
                self._reload()
            except (OSError, StoreError) as error:
                # Who asks for a row has no use for this, and the rows are still here.
                _LOGGER.warning("the store that is open stays so, for there is no new one: %s", error)
        return self._store

    def _reload(self) -> None:
        if _identity(self._path) == self._store.identity:
            return
        former, self._store = self._store, _Store.open(self._path)
        former.connection.close()
        _LOGGER.info("%s has been replaced: %s", self._path, self._store.metadata)


@dataclass(frozen=True)
class _Store:
    """A store that is open.

    Attributes:
        identity: Tells the file from another one of its name.
        connection: To the file, which stays there for it when another one takes its name.
        metadata: What the store says of itself.
    """

    identity: tuple[int, int, int]
    connection: sqlite3.Connection
    metadata: StoreMetadata

    @classmethod
    def open(cls, path: Path) -> "_Store":
        """Open the file, which stays open when another one takes its name."""
        # In this order: a file that takes the name in between is seen at the next look, and opened once more.
        identity = _identity(path)
        connection: sqlite3.Connection | None = None
        try:
            # Nobody changes the file: SQLite need neither lock it nor look for a journal beside it.
            uri = f"{path.as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            return cls(identity, connection, StoreMetadata.load(connection))
        except (sqlite3.Error, StoreError) as error:
            if connection is not None:
                connection.close()
            raise StoreError(f"{path} is no store of rows: {error}; write one with scoring.precompute") from error

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
                # NumPy's integers too.
                return operator.index(key)  # type: ignore[arg-type]
            except TypeError:
                pass
        raise TypeError(
            f"the key {key!r} is {type(key).__name__}, and column '{self.metadata.key}' of the store is "
            f"{self.metadata.key_type}; convert it"
        )


def _identity(path: Path) -> tuple[int, int, int]:
    """Return what tells a file from another one that takes its name.

    Raises:
        FileNotFoundError: There is none.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no store of rows at {path}; write one with scoring.precompute") from error
    return found.st_dev, found.st_ino, found.st_mtime_ns

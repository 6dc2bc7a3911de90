"""Look-up of precomputed rows by key, in one SQLite file and without Spark.

:func:`serving.precomputed.precompute` writes a store. A store never changes; a new one replaces it in one
step.

A store has a checksum of the whole file, verified when it is opened, and one of each row, verified by every look-up.
So a damaged file is refused, and a row that is found gives an error instead of other values if it has changed on the
disk. A changed key is not found; so unknown keys have the open file verified once more, in the background. Once damage
has been found, unknown keys are errors, too.
"""

import contextlib
import json
import logging
import math
import operator
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from mirrorspark.serving.precomputed.store_file import (
    TEXT,
    DamagedStoreError,
    StoreError,
    StoreMetadata,
    row_checksum,
    verify,
)

_ROW_OF_KEY = "SELECT key, value, checksum FROM rows WHERE key = ?"
_FIRST_ROW = "SELECT key, value, checksum FROM rows ORDER BY key ASC LIMIT 1"
_LAST_ROW = "SELECT key, value, checksum FROM rows ORDER BY key DESC LIMIT 1"

_LOGGER = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0
# Verifying reads the whole file: at most once a minute, and a hundredth of the time.
_VERIFY_SECONDS = 60.0
_VERIFY_SHARE = 0.01
INTEGERS = range(-(2**63), 2**63)
"""The integers that are keys."""


class Row(dict[str, Any]):
    """A row as a dict of its columns.

    Attributes:
        is_fallback: Whether the key is unknown and this is the fallback.
    """

    __slots__ = ("is_fallback",)

    def __init__(self, columns: Iterable[tuple[str, Any]], *, is_fallback: bool) -> None:
        super().__init__(columns)
        self.is_fallback = is_fallback


class PrecomputedScores:
    """Look-up of rows in a store by key. Thread-safe.

    A look-up notices within a second that a new store has replaced the open one, and has it opened and verified in the
    background. From then on the new store answers; if it cannot be opened or is damaged, :attr:`refused` gives the
    reason and the open one goes on to answer.

    A look-up of an unknown key has the open store verified in the background, unless that was done a minute ago: damage
    to keys, or to the pages that lead to them, hides rows.
    """

    def __init__(self, path: str | Path, *, follows: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        """Open a store; ``clock`` is a monotonic clock in seconds.

        Without ``follows``, the store that is open now answers also after another one has replaced its file.
        """
        self._path = Path(path).absolute()
        self._clock, self._follows = clock, follows
        self._lock = threading.Lock()
        self._store = _Store.open(self._path)
        self._next_check = clock() + _CHECK_SECONDS
        self._opening: threading.Thread | None = None
        self._next_verification = clock() + _VERIFY_SECONDS
        self._refused: _Refused | None = None
        self._damage: str | None = None
        self._is_closed = False

    @classmethod
    def open(cls, path: str | Path) -> "PrecomputedScores":
        """Open the store at ``path``.

        Raises:
            FileNotFoundError: The file does not exist.
            DamagedStoreError: The file's checksum does not match. The file is read once for this.
            StoreError: The file is not a store, or has another format.
        """
        return cls(path)

    def get(self, key: int | str) -> Row | None:
        """Return the row of ``key``; for an unknown key the fallback (``is_fallback`` is true), or None without one.

        Raises:
            TypeError: The store has keys of another type.
            DamagedStoreError: The row has changed since it was written, or the key is unknown and the store is known to
                be damaged.
        """
        return self.get_many([key])[0]

    def get_many(self, keys: Iterable[int | str]) -> list[Row | None]:
        """Return the result of :meth:`get` for each key, in order and all from the same store.

        Raises:
            TypeError, DamagedStoreError: As in :meth:`get`.
        """
        wanted = list(keys)
        with self._lock:
            store = self._current()
            try:
                found = [store.row(key) for key in wanted]
            except DamagedStoreError as error:
                self._damage = str(error)
                raise
            if any(row is None or row.is_fallback for row in found):
                self._doubt(store)
            return found

    @property
    def path(self) -> Path:
        """The file, absolute, as messages name it."""
        return self._path

    @property
    def identity(self) -> "StoreIdentity":
        """:func:`store_identity` of the store that answers."""
        with self._lock:
            return self._current().identity

    @property
    def metadata(self) -> StoreMetadata:
        """The store's description of itself."""
        with self._lock:
            return self._current().metadata

    @property
    def refused(self) -> str | None:
        """Reason for which the newest file is not in use; None if it is."""
        with self._lock:
            self._current()
            return None if self._refused is None else self._refused.reason

    def check(self) -> None:
        """Read the first and the last row, as a probe of the open store.

        Raises:
            DamagedStoreError: They cannot be read, or an earlier look-up in this store, or its verification, found
                damage.
        """
        with self._lock:
            if self._damage is None:
                try:
                    self._current().check()
                except DamagedStoreError as error:
                    self._damage = str(error)
            if self._damage is not None:
                raise DamagedStoreError(self._damage)

    def reload(self) -> None:
        """Check for a new store now.

        Raises:
            FileNotFoundError: The file is missing. The open store stays in use, here and in the next cases.
            DamagedStoreError: The new file's checksum does not match.
            StoreError: The new file is not a store, or has another format.
        """
        with self._lock:
            if store_identity(self._path) == self._store.identity:
                return
        self._replace(_Store.open(self._path))

    def close(self) -> None:
        """Close the store, which cannot be used afterwards."""
        with self._lock:
            self._store.close()
            self._is_closed = True

    def __enter__(self) -> "PrecomputedScores":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current(self) -> "_Store":
        """Return the open store; the caller holds the lock."""
        now = self._clock()
        if self._follows and now >= self._next_check and not self._is_closed:
            self._next_check = now + _CHECK_SECONDS
            self._look_for_replacement()
        return self._store

    def _look_for_replacement(self) -> None:
        if self._opening is not None and self._opening.is_alive():
            return
        try:
            identity = store_identity(self._path)
        except OSError as error:
            self._refuse(None, error)
            return
        if identity == self._store.identity:
            self._refused = None
        elif self._refused is None or self._refused.identity != identity:
            # Verifying reads the whole file; look-ups go on meanwhile.
            self._opening = threading.Thread(target=self._open_replacement, args=(identity,), daemon=True)
            self._opening.start()

    def _doubt(self, store: "_Store") -> None:
        """Have the open store verified since a row was not found; the caller holds the lock.

        Raises:
            DamagedStoreError: Damage has been found before, so the row may have been there.
        """
        if self._damage is not None:
            raise DamagedStoreError(self._damage)
        now = self._clock()
        if now < self._next_verification or self._is_closed:
            return
        self._next_verification = now + _VERIFY_SECONDS
        with contextlib.suppress(OSError, RuntimeError):  # No descriptor or thread is left: it is tried again.
            # A descriptor of its own, because a replacement has the store's name, and closes its file.
            file = os.fdopen(os.dup(store.file.fileno()), "rb")
            threading.Thread(target=self._verify, args=(store, file), daemon=True).start()
            self._next_verification = math.inf  # Until this one has ended: both would move one position in the file.

    def _verify(self, store: "_Store", file: BinaryIO) -> None:
        began = self._clock()
        damage = None
        try:
            with file:
                verify(file, store.path)
        except (OSError, DamagedStoreError) as error:
            damage = str(error)
        if damage is not None:
            _LOGGER.error("%s", damage)
        with self._lock:
            if self._store is store:
                self._damage = self._damage or damage
            ended = self._clock()
            self._next_verification = ended + max(_VERIFY_SECONDS, (ended - began) / _VERIFY_SHARE)

    def _open_replacement(self, identity: "StoreIdentity") -> None:
        try:
            self._replace(_Store.open(self._path))
        except (OSError, StoreError) as error:
            with self._lock:
                self._refuse(identity, error)

    def _replace(self, store: "_Store") -> None:
        with self._lock:
            if self._is_closed:
                store.close()
                return
            former, self._store = self._store, store
            former.close()
            self._refused = self._damage = None
        _LOGGER.info("%s has been replaced: %s", self._path, store.metadata)

    def _refuse(self, identity: "StoreIdentity | None", error: Exception) -> None:
        refused = _Refused(identity, str(error))
        if refused != self._refused:
            # A look-up does not fail for this, because the open store still answers.
            _LOGGER.warning("the open store stays in use, because the new one cannot be used: %s", error)
        self._refused = refused


StoreIdentity: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class _Refused:
    """A replacement that is not used.

    Attributes:
        identity: Identity of the file; None where there is no file.
        reason: Why it is not used.
    """

    identity: StoreIdentity | None
    reason: str


@dataclass(frozen=True)
class _Store:
    """An open store.

    Attributes:
        identity: Identity of the file, which differs for a replacement of the same name.
    """

    identity: StoreIdentity
    path: Path
    connection: sqlite3.Connection
    file: BinaryIO
    metadata: StoreMetadata

    @classmethod
    def open(cls, path: Path) -> "_Store":
        """Open the file, which stays open when another one replaces it."""
        # The identity is read first, so that a replacement in between is noticed at the next check.
        identity = store_identity(path)
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(path.open("rb"))
            try:
                # The file never changes, so SQLite needs neither a lock nor a journal.
                uri = f"{path.as_uri()}?mode=ro&immutable=1"
                connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
                opened.callback(connection.close)
                metadata = StoreMetadata.load(connection)
                verify(file, path)
            except DamagedStoreError:
                raise
            except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path} is not a store of rows: {error}; write one with ms.precompute") from error
            if store_identity(path) == identity:
                opened.pop_all()
                return cls(identity, path, connection, file, metadata)
        # Replaced since: the file that was verified may not be the one that is open.
        return cls.open(path)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        self.file.close()

    def row(self, key: int | str) -> Row | None:
        """Return the row of ``key``, the fallback, or None."""
        wanted = self._checked(key)
        found = None
        if is_in_utf8(wanted) if isinstance(wanted, str) else wanted in INTEGERS:
            found = self._one(_ROW_OF_KEY, wanted)
        text = self.metadata.fallback if found is None else found
        if text is None:
            return None
        return Row(zip(self.metadata.columns, [wanted, *json.loads(text)], strict=True), is_fallback=found is None)

    def check(self) -> None:
        """Read the first and the last row.

        Raises:
            DamagedStoreError: They are not as they were written.
        """
        for query in (_FIRST_ROW, _LAST_ROW):
            if self._one(query) is None:
                raise self._damaged("it has no rows")

    def _one(self, query: str, *values: int | str) -> str | None:
        """Return the value of the row that ``query`` finds, or None if there is no such row.

        Raises:
            DamagedStoreError: The row is not as it was written, or SQLite cannot read it.
        """
        try:
            found = self.connection.execute(query, values).fetchone()
        except sqlite3.ProgrammingError:
            raise  # used after it was closed
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error
        if found is None:
            return None
        key, value, checksum = found
        if row_checksum(key, value) != checksum:
            raise self._damaged(f"the checksum of the row of key {key!r} does not match")
        return str(value)

    def _damaged(self, reason: object) -> DamagedStoreError:
        return DamagedStoreError(f"{self.path} is damaged: {reason}; write it again with ms.precompute")

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


def is_in_utf8(text: str) -> bool:
    """Return whether UTF-8 can hold a text; it holds no half of a character pair, so no store has a key with one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def store_identity(path: Path) -> StoreIdentity:
    """Return an identity that differs for a replacement of the same name.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no store of rows at {path}; write one with ms.precompute") from error
    return found.st_dev, found.st_ino, found.st_mtime_ns

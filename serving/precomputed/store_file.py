"""The file of precomputed rows: the tables of an SQLite database, its metadata, and the checksums of file and rows."""

import json
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from mirrorspark.clear_error import ClearError

FORMAT = 2
INTEGER, TEXT = "int64", "string"
"""Arrow names of the key types."""

METADATA_TABLE = "CREATE TABLE metadata (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)"
# The integer key of a plain table is its row id, which is SQLite's fastest access. Strings need an index, and a table
# without row ids is that index (sqlite.org/withoutrowid.html).
ROWS_TABLES: Mapping[str, str] = {
    INTEGER: "CREATE TABLE rows (key INTEGER PRIMARY KEY NOT NULL, value TEXT NOT NULL, checksum INTEGER NOT NULL)",
    TEXT: (
        "CREATE TABLE rows (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL, checksum INTEGER NOT NULL) "
        "WITHOUT ROWID"
    ),
}

# The user version of SQLite's file header (sqlite.org/fileformat.html): four bytes that SQLite leaves to the
# application. They hold the checksum of the file, for which they count as zeros.
_SEAL = slice(60, 64)
_READ_BYTES = 1 << 22


class StoreError(ClearError, ValueError):
    """Raised for an invalid store, or a table that cannot become one; the message gives the remedy."""


class DamagedStoreError(StoreError):
    """Raised when the bytes of a store are not those that were written."""


@dataclass(frozen=True)
class StoreMetadata:
    """Metadata of a store.

    Attributes:
        columns: Arrow type by column; the first is the key.
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
            sqlite3.Error, ValueError, KeyError, TypeError: The file is not a store.
        """
        document = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM metadata")}
        found = document.get("format")
        if found != FORMAT:
            raise StoreError(f"it has format {found}, and this version reads {FORMAT}; write it again")
        values = {field.name: document[field.name] for field in fields(cls)}
        return cls(**values | {"model_versions": tuple(values["model_versions"])})


def row_checksum(key: int | str, value: str) -> int:
    """Return the CRC-32 of a row's key and value, which no other row has."""
    return zlib.crc32(f"{key}\n{value}".encode())


def seal(path: Path) -> None:
    """Write the checksum of a closed store into its file.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("r+b") as file:
        checksum = _file_checksum(file)
        file.seek(_SEAL.start)
        file.write(checksum.to_bytes(4, "big"))


def _file_checksum(file: BinaryIO) -> int:
    file.seek(0)
    start = bytearray(file.read(_READ_BYTES))
    start[_SEAL] = bytes(4)
    checksum = zlib.crc32(start)
    while block := file.read(_READ_BYTES):
        checksum = zlib.crc32(block, checksum)
    return checksum


def verify(file: BinaryIO, path: Path) -> None:
    """Compare the file with its checksum.

    Raises:
        DamagedStoreError: They differ.
    """
    file.seek(_SEAL.start)
    sealed = int.from_bytes(file.read(4), "big")
    if _file_checksum(file) != sealed:
        raise DamagedStoreError(
            f"{path} is damaged: its checksum does not match; copy it again from where it was written, or write it "
            "again with ms.precompute"
        )

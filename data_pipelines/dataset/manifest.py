"""The manifest of a dataset directory, ``manifest.json``: its content, written last and checked before reading."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.tfrecord import RECORD_OVERHEAD_BYTES, crc32c
from mirrorspark.storage import StoragePath, leads_out

MANIFEST_FILE = "manifest.json"
FEATURES_FOLDER = "features"
# Raw rows of the test split, to explain predictions; datasets of earlier versions have none.
TEST_ROWS_FILE = "test_rows.parquet"
FORMAT_VERSION = 2
BLOCK_LAYOUT = "block"
TRAIN_SPLIT = "train"
TEST_SPLIT = "test"
SPLITS = (TRAIN_SPLIT, "validation", TEST_SPLIT)

_READ_BYTES = 16 * 2**20


class DatasetError(ClearError, ValueError):
    """A dataset directory that cannot be used; the message names it, the problem and the remedy."""


@dataclass(frozen=True)
class Shard:
    """One TFRecord file of a split.

    Attributes:
        path: Relative to the dataset directory.
        rows: The number of examples.
        crc32c: CRC-32C of the whole file.
        block_offsets: The byte where each record begins.
        block_rows: The number of examples in each record.
    """

    path: str
    rows: int
    bytes: int
    crc32c: int
    block_offsets: tuple[int, ...]
    block_rows: tuple[int, ...]

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Shard":
        """Restore a shard from its ``dataclasses.asdict`` form after JSON.

        Raises:
            ValueError: Its numbers cannot be those of a file: memory is reserved by them, and kernels read where they
                point. The message says which.
        """
        shard = cls(**{**document, **{name: tuple(document[name]) for name in ("block_offsets", "block_rows")}})
        if problem := shard._problem():
            raise ValueError(f"shard {shard.path!r}: {problem}")
        return shard

    def _problem(self) -> str:
        """Return the error in the numbers, in words; empty if they are valid."""
        numbers = (self.rows, self.bytes, self.crc32c, *self.block_offsets, *self.block_rows)
        if any(type(number) is not int or number < 0 for number in numbers):
            return "a number is not a whole number of 0 or more"
        if len(self.block_offsets) != len(self.block_rows) or sum(self.block_rows) != self.rows:
            return f"{len(self.block_offsets)} blocks begin in it, {len(self.block_rows)} have rows, in all {self.rows}"
        ends = (*self.block_offsets[1:], self.bytes) if self.block_offsets else ()
        for offset, rows, end in zip(self.block_offsets, self.block_rows, ends, strict=True):
            # Each row takes a byte or more in each of its columns.
            if rows > end - offset - RECORD_OVERHEAD_BYTES:
                return f"the block at byte {offset} ends at byte {end}, which leaves no room for {rows} rows"
        return ""


@dataclass(frozen=True)
class Manifest:
    """Everything that a worker must know about a dataset before it starts.

    Attributes:
        features_hash: Hash of the fitted features in ``features/``.
        statistics: Per column: count, missing, and minimum / maximum / mean or the number of distinct tokens.
        source: The source of the rows, as the caller named it.
        options: The options they were written with.
        columns: The source columns that were read, all named by the spec: no others reached a file.
        findings: The findings of validation, the worst first: severity, column, check and sentence of each.
        versions: Versions of the libraries that wrote them.
    """

    features_hash: str
    splits: Mapping[str, tuple[Shard, ...]]
    statistics: Mapping[str, Mapping[str, float]]
    source: Mapping[str, Any]
    options: Mapping[str, Any]
    columns: tuple[str, ...]
    findings: tuple[Mapping[str, str], ...]
    versions: Mapping[str, str]
    format_version: int = FORMAT_VERSION
    layout: str = BLOCK_LAYOUT

    def rows(self, split: str) -> int:
        """Return the number of examples in ``split``."""
        return sum(shard.rows for shard in self.splits[split])

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shards in self.splits.values() for shard in shards)

    @property
    def content_hash(self) -> str:
        """Twelve hex digits that change with any shard or the features."""
        checksums = {shard.path: shard.crc32c for shards in self.splits.values() for shard in shards}
        document = json.dumps([self.features_hash, checksums], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:12]

    def save(self, directory: Path | StoragePath) -> None:
        """Write ``manifest.json`` atomically: a crash leaves either none or a whole one."""
        (StoragePath.of(directory) / MANIFEST_FILE).write_bytes(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, directory: Path | StoragePath) -> "Manifest":
        """Read ``manifest.json``.

        Raises:
            DatasetError: There is none, it is not JSON, it names a shard outside the directory or numbers that no shard
                can have, or a later version of this library wrote it.
        """
        path = StoragePath.of(directory) / MANIFEST_FILE
        if not path.is_file():
            # In an object store there are no folders.
            is_missing = path.is_local and not path.parent.exists()
            what = "does not exist" if is_missing else f"holds no {MANIFEST_FILE}, so no whole dataset"
            raise DatasetError(f"{directory} {what}; convert the data again, or give a table to fit")
        try:
            document = json.loads(path.read_bytes())
            version = document["format_version"]
            if version != FORMAT_VERSION:
                raise DatasetError(  # noqa: TRY301 - read before the parts that another version may not have
                    f"{path} has format version {version}, known is {FORMAT_VERSION}; convert again"
                )
            document.pop("compression", None)  # of earlier manifests, where it was always "none"
            document["splits"] = {
                split: tuple(map(Shard.from_dict, shards)) for split, shards in document["splits"].items()
            }
            manifest = cls(**{**document, **{name: tuple(document[name]) for name in ("columns", "findings")}})
            outside = [shard.path for shards in manifest.splits.values() for shard in shards if leads_out(shard.path)]
        except DatasetError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(f"{path} is damaged ({error}); delete {directory} and convert again") from error
        if outside:
            raise DatasetError(
                f"{path} is damaged (shard {outside[0]!r} is not inside {directory}); delete it and convert again"
            )
        return manifest


def check_directory(directory: Path, *, checksums: bool = False) -> Manifest:
    """Return the manifest of ``directory`` after comparing it with the files.

    Args:
        directory: The dataset directory.
        checksums: Compare the CRC-32C of every shard too, not only its size.

    Raises:
        DatasetError: A shard is missing, or its size or (with ``checksums``) its content differs.
    """
    manifest = Manifest.load(directory)
    for shards in manifest.splits.values():
        for shard in shards:
            path = directory / shard.path
            if not path.is_file():
                raise DatasetError(f"shard {path} is missing; delete {directory} and convert again")
            size = path.stat().st_size
            if size != shard.bytes:
                raise DatasetError(
                    f"shard {path} has {size} bytes, its manifest says {shard.bytes}; "
                    f"it is damaged: delete {directory} and convert again"
                )
            if checksums and _file_crc32c(path) != shard.crc32c:
                raise DatasetError(
                    f"shard {path} does not have the checksum of its manifest; "
                    f"it is damaged: delete {directory} and convert again"
                )
    return manifest


def _file_crc32c(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            checksum = crc32c(piece, checksum)
    return checksum


def is_published(path: str | Path | StoragePath) -> bool:
    """Return whether a conversion to ``path`` has been published."""
    return (StoragePath.of(path) / MANIFEST_FILE).is_file()

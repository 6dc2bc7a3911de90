"""What a dataset directory holds, and whether it is whole: ``manifest.json``, written last."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.storage import StoragePath
from data_pipelines.tfrecord.crc32c import crc32c

MANIFEST_FILE = "manifest.json"
FEATURES_FOLDER = "features"
FORMAT_VERSION = 2
BLOCK_LAYOUT = "block"
TRAIN_SPLIT = "train"
SPLITS = (TRAIN_SPLIT, "validation", "test")

_READ_BYTES = 16 * 2**20


class DatasetError(ValueError):
    """A dataset directory that cannot be used; the message says which, what is wrong and what to do."""


@dataclass(frozen=True)
class Shard:
    """One TFRecord file of a split.

    Attributes:
        path: Relative to the dataset directory.
        rows: Examples in it.
        bytes: Size of the file.
        crc32c: CRC-32C of the whole file.
        block_offsets: Where each record begins, in bytes.
        block_rows: Examples in each record.
    """

    path: str
    rows: int
    bytes: int
    crc32c: int
    block_offsets: tuple[int, ...]
    block_rows: tuple[int, ...]

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Shard":
        """Read what ``dataclasses.asdict`` and JSON made of a shard."""
        return cls(**{**document, **{name: tuple(document[name]) for name in ("block_offsets", "block_rows")}})


@dataclass(frozen=True)
class Manifest:
    """Everything a worker must know of a dataset before it starts.

    Attributes:
        features_hash: Hash of the fitted features in ``features/``.
        splits: Shards per split name.
        statistics: Per column: count, missing, and minimum / maximum / mean or the number of distinct tokens.
        source: What the rows came from, as the caller named it.
        options: How they were written.
        columns: The columns of the source that were read, all of them named by the spec: nothing else reached a file.
        findings: What validation found: severity, column, check and sentence of each, the worst first.
        versions: Libraries that wrote them.
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
    compression: str = "none"

    def rows(self, split: str) -> int:
        """Return the number of examples in ``split``."""
        return sum(shard.rows for shard in self.splits[split])

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shards in self.splits.values() for shard in shards)

    @property
    def content_hash(self) -> str:
        """Twelve hex digits that change when any shard or the features do."""
        checksums = {shard.path: shard.crc32c for shards in self.splits.values() for shard in shards}
        document = json.dumps([self.features_hash, checksums], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:12]

    def save(self, directory: Path | StoragePath) -> None:
        """Write ``manifest.json`` so that a crash leaves either none or a whole one."""
        (StoragePath.of(directory) / MANIFEST_FILE).write_bytes(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, directory: Path | StoragePath) -> "Manifest":
        """Read ``manifest.json``.

        Raises:
            DatasetError: There is none, it is no JSON, it names a shard outside the directory, or a later version of
                this library wrote it.
        """
        path = StoragePath.of(directory) / MANIFEST_FILE
        if not path.is_file():
            raise DatasetError(f"{directory} holds no {MANIFEST_FILE}, so no whole dataset; convert the data again")
        try:
            document = json.loads(path.read_bytes())
            version = document["format_version"]
            if version != FORMAT_VERSION:
                raise DatasetError(f"{path} has format version {version}, known is {FORMAT_VERSION}; convert again")
            document["splits"] = {
                split: tuple(map(Shard.from_dict, shards)) for split, shards in document["splits"].items()
            }
            manifest = cls(**{**document, **{name: tuple(document[name]) for name in ("columns", "findings")}})
            outside = [shard.path for shards in manifest.splits.values() for shard in shards if _leads_out(shard.path)]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{path} is damaged ({error}); delete {directory} and convert again") from error
        if outside:
            raise DatasetError(
                f"{path} is damaged (shard {outside[0]!r} is not inside {directory}); delete it and convert again"
            )
        return manifest


def check_directory(directory: Path, *, checksums: bool = False) -> Manifest:
    """Return the manifest of ``directory`` after comparing it with the files that are there.

    Args:
        directory: The dataset directory.
        checksums: Read every shard and compare its CRC-32C too, not only its size.

    Raises:
        DatasetError: A shard is missing, has another size or (with ``checksums``) another content.
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


def _leads_out(shard: str) -> bool:
    return PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts


def _file_crc32c(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            checksum = crc32c(piece, checksum)
    return checksum


def is_published(path: str | Path | StoragePath) -> bool:
    """Return whether a conversion to ``path`` has been published."""
    return (StoragePath.of(path) / MANIFEST_FILE).is_file()

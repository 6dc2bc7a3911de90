"""What can be said of a read or a write of TFRecord files, under the names that users of the JVM connectors know."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from data_pipelines.tfrecord.arrow_schema import RecordType

ROWS_PER_BLOCK = 1024

_Choice = TypeVar("_Choice", bound=StrEnum)
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
# What Spark itself, or a user of any file source, may add; none of it changes what a file holds.
_SPARKS_OWN = frozenset({"path", "paths", "checkpointlocation", "queryname", "writelocality"})
_CODECS = {
    "": "none",
    "none": "none",
    "uncompressed": "none",
    "gzip": "gzip",
    "gz": "gzip",
    "zlib": "zlib",
    "deflate": "zlib",
    "org.apache.hadoop.io.compress.gzipcodec": "gzip",
    "org.apache.hadoop.io.compress.defaultcodec": "zlib",
    "org.apache.hadoop.io.compress.deflatecodec": "zlib",
}


class Layout(StrEnum):
    """How rows become records: one each, or about a thousand in one."""

    ROW = "row"
    BLOCK = "block"


class OnDamage(StrEnum):
    """What a read does about a damaged record: fail, or skip it and count it."""

    FAIL = "fail"
    SKIP = "skip"


class OptionError(ValueError):
    """An option that does not exist, or a value that it does not take; the message says which and what would do."""


@dataclass(frozen=True)
class WriteOptions:
    """How rows are written.

    Attributes:
        record_type: What a record is.
        layout: How rows become records.
        codec: ``none``, ``gzip`` or ``zlib``, or the class name of one of Hadoop's codecs.
        rows_per_block: Rows in one record of the block layout.
        max_rows_per_file: A task begins a new file after so many rows; 0 for one file per task.
    """

    record_type: RecordType = RecordType.EXAMPLE
    layout: Layout = Layout.ROW
    codec: str = "none"
    rows_per_block: int = ROWS_PER_BLOCK
    max_rows_per_file: int = 0

    def __post_init__(self) -> None:
        # Plain strings are welcome; what is kept is the enum.
        object.__setattr__(self, "record_type", record_type_of(self.record_type))
        object.__setattr__(self, "layout", _choice("layout", self.layout, Layout))
        object.__setattr__(self, "codec", codec_of(self.codec))
        if self.rows_per_block < 1:
            raise OptionError(f"rows_per_block is {self.rows_per_block}; a block has one row or more")
        if self.max_rows_per_file < 0:
            raise OptionError(f"max_rows_per_file is {self.max_rows_per_file}; use 0 for no limit")
        if self.layout is Layout.BLOCK and self.record_type is not RecordType.EXAMPLE:
            raise OptionError(
                f"layout 'block' with record type {self.record_type}: a block is an Example; use the row layout"
            )

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "WriteOptions":
        """Read the options of ``df.write``; Spark hands their names over in lower case.

        Raises:
            OptionError: An option is unknown, or has a value that it does not take.
        """
        known = {
            "recordtype": "record_type",
            "layout": "layout",
            "codec": "codec",
            "compression": "codec",
            "rowsperblock": "rows_per_block",
            "maxrecordsperfile": "max_rows_per_file",
        }
        found: dict[str, object] = dict(_named(options, known))
        for name in ("rows_per_block", "max_rows_per_file"):
            if name in found:
                found[name] = _number(name, str(found[name]))
        return cls(**found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ReadOptions:
    """How files are read. Layout and compression are found out from their content.

    Attributes:
        record_type: What a record is.
        codec: What the compression is where the content does not tell; None to believe the content.
        on_damage: What to do about a damaged record.
        verify_checksums: Whether to compare the checksums of each record.
        sample_files: How many files a schema is inferred from, spread over all; 0 for all files.
        base_path: Folder below which folders like ``day=3`` are columns; None for the location that is read.
    """

    record_type: RecordType = RecordType.EXAMPLE
    codec: str | None = None
    on_damage: OnDamage = OnDamage.FAIL
    verify_checksums: bool = True
    sample_files: int = 0
    base_path: str | None = None

    def __post_init__(self) -> None:
        # Plain strings are welcome; what is kept is the enum.
        object.__setattr__(self, "record_type", record_type_of(self.record_type))
        object.__setattr__(self, "on_damage", _choice("on_damage", self.on_damage, OnDamage))
        if self.codec is not None:
            object.__setattr__(self, "codec", codec_of(self.codec))
        if self.sample_files < 0:
            raise OptionError(f"sample_files is {self.sample_files}; use 0 to infer the schema from all files")

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "ReadOptions":
        """Read the options of ``spark.read``; Spark hands their names over in lower case.

        Raises:
            OptionError: An option is unknown, or has a value that it does not take.
        """
        known = {
            "recordtype": "record_type",
            "codec": "codec",
            "compression": "codec",
            "ondamage": "on_damage",
            "verifychecksums": "verify_checksums",
            "samplefiles": "sample_files",
            "basepath": "base_path",
        }
        found: dict[str, object] = dict(_named(options, known))
        if "verify_checksums" in found:
            found["verify_checksums"] = _flag("verifyChecksums", str(found["verify_checksums"]))
        if "sample_files" in found:
            found["sample_files"] = _number("sampleFiles", str(found["sample_files"]))
        return cls(**found)  # type: ignore[arg-type]


def record_type_of(name: str) -> RecordType:
    """Return the record type of that name, in any case.

    Raises:
        OptionError: There is none.
    """
    return _choice("recordType", name, RecordType)


def codec_of(name: str) -> str:
    """Return ``none``, ``gzip`` or ``zlib`` for the name of a codec or of Hadoop's class, in any case.

    Raises:
        OptionError: It is none of them.
    """
    codec = _CODECS.get(name.lower())
    if codec is None:
        raise OptionError(f"codec {name!r} is none that TFRecord readers know; use none, gzip or zlib")
    return codec


def _choice(option: str, value: str, choices: type[_Choice]) -> _Choice:
    for choice in choices:
        if choice.value.lower() == str(value).lower():
            return choice
    raise OptionError(f"{option} {value!r} is none of {', '.join(choices)}; choose one of them")


def _named(options: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(map(str.lower, options)) - set(known) - _SPARKS_OWN)
    if unknown:
        raise OptionError(f"unknown option {', '.join(unknown)}; the options are {', '.join(sorted(known))}")
    return {known[name.lower()]: value for name, value in options.items() if name.lower() in known}


def _number(option: str, value: str) -> int:
    if not value.isdecimal():
        raise OptionError(f"{option} {value!r} is no whole number from 0 on")
    return int(value)


def _flag(option: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise OptionError(f"{option} {value!r} is neither true nor false")

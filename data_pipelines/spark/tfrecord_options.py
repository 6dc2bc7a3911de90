"""Options of reading and writing TFRecord files, under the names of the JVM connectors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from mirrorspark.data_pipelines.tfrecord.arrow_schema import RecordType
from mirrorspark.data_pipelines.tfrecord.table_blocks import ROWS_PER_BLOCK
from mirrorspark.storage.paths import StoragePath

_Choice = TypeVar("_Choice", bound=StrEnum)
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
# Options that Spark itself, or a user of any file source, may add; none of them changes a file's content.
_SPARK_OPTIONS = frozenset({"path", "paths", "checkpointlocation", "queryname", "writelocality"})
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
    """The number of rows in a record: one, or about a thousand."""

    ROW = "row"
    BLOCK = "block"


class OnDamage(StrEnum):
    """The treatment of a damaged record: fail, or skip and count it."""

    FAIL = "fail"
    SKIP = "skip"


class OptionError(ValueError):
    """An unknown option or an invalid value; the message names it and the valid ones."""


# Takes an option's name, for messages, and its value.
_Check = Callable[[str, object], object]


@dataclass(frozen=True)
class WriteOptions:
    """Options of a write.

    Attributes:
        record_type: What a record is.
        layout: One row per record, or blocks of rows.
        codec: ``none``, ``gzip`` or ``zlib``, or the class name of one of Hadoop's codecs.
        rows_per_block: Rows in one record of the block layout.
        max_rows_per_file: A task begins a new file after this many rows; 0 for one file per task.
    """

    record_type: RecordType = RecordType.EXAMPLE
    layout: Layout = Layout.ROW
    codec: str = "none"
    rows_per_block: int = ROWS_PER_BLOCK
    max_rows_per_file: int = 0

    def __post_init__(self) -> None:
        # Plain strings are accepted and converted to the enum.
        for name, check in _WRITE_CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.layout is Layout.BLOCK and self.record_type is not RecordType.EXAMPLE:
            raise OptionError(
                f"layout 'block' with record type {self.record_type}: a block is an Example; use the row layout"
            )

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "WriteOptions":
        """Read the options of ``df.write``, whose names may be in lower case.

        Raises:
            OptionError: An option is unknown or has an invalid value.
        """
        known = {
            "recordType": "record_type",
            "layout": "layout",
            "codec": "codec",
            "compression": "codec",
            "rowsPerBlock": "rows_per_block",
            "maxRecordsPerFile": "max_rows_per_file",
        }
        return cls(**_named(options, known, _WRITE_CHECKS))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ReadOptions:
    """Options of a read. Layout and compression are detected from the content.

    Attributes:
        record_type: What a record is.
        codec: The compression that files must have; None to detect it from the content.
        on_damage: The treatment of damaged records.
        verify_checksums: Compare the checksums of each record.
        sample_files: The number of files to infer a schema from, spread over all; 0 for all files.
        base_path: Folder below which folders like ``day=3`` are columns; None for the location itself.
    """

    record_type: RecordType = RecordType.EXAMPLE
    codec: str | None = None
    on_damage: OnDamage = OnDamage.FAIL
    verify_checksums: bool = True
    sample_files: int = 0
    base_path: str | Path | StoragePath | None = None

    def __post_init__(self) -> None:
        # Plain strings are accepted and converted to the enum.
        for name, check in _READ_CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "ReadOptions":
        """Read the options of ``spark.read``, whose names may be in lower case.

        Raises:
            OptionError: An option is unknown or has an invalid value.
        """
        known = {
            "recordType": "record_type",
            "codec": "codec",
            "compression": "codec",
            "onDamage": "on_damage",
            "verifyChecksums": "verify_checksums",
            "sampleFiles": "sample_files",
            "basePath": "base_path",
        }
        return cls(**_named(options, known, _READ_CHECKS))  # type: ignore[arg-type]


def _choice(choices: type[_Choice]) -> Callable[[str, object], _Choice]:
    def check(option: str, value: object) -> _Choice:
        for choice in choices:
            if isinstance(value, str) and choice.value.lower() == value.lower():
                return choice
        raise OptionError(f"{option} {value!r} is none of {', '.join(choices)}; choose one of them")

    return check


def _codec(option: str, value: object) -> str:
    """Return ``none``, ``gzip`` or ``zlib`` for the name of a codec or of Hadoop's class, in any case."""
    codec = _CODECS.get(value.lower()) if isinstance(value, str) else None
    if codec is None:
        raise OptionError(f"{option} {value!r} is not a codec of TFRecord readers; use none, gzip or zlib")
    return codec


def _codec_or_none(option: str, value: object) -> str | None:
    return None if value is None else _codec(option, value)


def _number_from(least: int) -> Callable[[str, object], int]:
    def check(option: str, value: object) -> int:
        # In Python, True counts as 1; here it is a mistake.
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise OptionError(f"{option} is {value!r}; it is a whole number from {least} on")
        return value

    return check


def _flag(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{option} is {value!r}; it is true or false")
    return value


def _location(option: str, value: object) -> str | Path | StoragePath | None:
    if value is not None and not isinstance(value, str | Path | StoragePath):
        raise OptionError(f"{option} is {value!r}; it is a path")
    return value


_WRITE_CHECKS: Mapping[str, _Check] = {
    "record_type": _choice(RecordType),
    "layout": _choice(Layout),
    "codec": _codec,
    "rows_per_block": _number_from(1),
    "max_rows_per_file": _number_from(0),
}
_READ_CHECKS: Mapping[str, _Check] = {
    "record_type": _choice(RecordType),
    "codec": _codec_or_none,
    "on_damage": _choice(OnDamage),
    "verify_checksums": _flag,
    "sample_files": _number_from(0),
    "base_path": _location,
}
_NUMBERS = frozenset({"rows_per_block", "max_rows_per_file", "sample_files"})
_FLAGS = frozenset({"verify_checksums"})


def _named(options: Mapping[str, str], known: Mapping[str, str], checks: Mapping[str, _Check]) -> dict[str, object]:
    """Return the values of ``options`` under our names, with the caller's names in messages.

    Args:
        options: Spark's options, all of them text.
        known: Our name of each option, by the caller's name.
        checks: The checks, by our name.
    """
    spelled = {name.lower(): name for name in known}
    unknown = sorted(name for name in options if name.lower() not in spelled and name.lower() not in _SPARK_OPTIONS)
    if unknown:
        raise OptionError(f"unknown option {', '.join(unknown)}; the options are {', '.join(sorted(known))}")
    found = {}
    for given, text in options.items():
        if given.lower() in spelled:
            name = spelled[given.lower()]
            found[known[name]] = checks[known[name]](name, _value(known[name], text))
    return found


def _value(name: str, text: str) -> object:
    """Return the value of an option's text; invalid text is returned as it is, for the option's check to refuse."""
    if name in _NUMBERS and text.isascii() and text.isdecimal():
        return int(text)
    if name in _FLAGS and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    return text

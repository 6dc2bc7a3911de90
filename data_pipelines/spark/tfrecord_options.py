"""Options of reading and writing TFRecord files, under the names of Spark's TFRecord connectors.

A new option is a field here; ``data_pipelines.tfrecords`` passes it on as an argument of its functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self, TypeVar, get_type_hints

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.tfrecord import arrow_schema, table_blocks
from mirrorspark.storage import StoragePath

_Choice = TypeVar("_Choice", bound=StrEnum)
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
# Options that Spark itself, or a user of any file source, may add; none of them changes a file's content. The schema is
# that of all files anyway.
_SPARK_OPTIONS = frozenset({"path", "paths", "checkpointlocation", "queryname", "writelocality", "mergeschema"})
# Options of the JVM connectors, which are Spark's own file formats, that a Python data source cannot have.
_REMEDIES = {
    "partitionby": "write with ms.write_tfrecords(df, path, partition_by=[...])",
    "ignorecorruptfiles": "give onDamage=skip",
    "ignoremissingfiles": "give paths that exist",
    "pathglobfilter": "give a pattern as the path, such as /data/clicks/*.gz",
    "recursivefilelookup": "leave it out: the files of all folders are read, and folders like day=3 are columns",
    "modifiedafter": "give the paths of the files",
    "modifiedbefore": "give the paths of the files",
}
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


class OptionError(ClearError, ValueError):
    """An unknown option or an invalid value; the message names it and the valid ones."""


# Takes an option's name, for messages, and its value; returns the value, or raises OptionError.
_Check = Callable[[str, object], object]


@dataclass(frozen=True)
class _Option:
    """The option that sets a field.

    Attributes:
        names: The names of Spark's option for it, separated by blanks.
        check: Checks a value, and converts plain text to the field's type.
    """

    names: str
    check: _Check


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


class _Options:
    """Options that can also be given as text, under the names of the JVM connectors."""

    def __post_init__(self) -> None:
        # Plain strings are accepted and converted to the enum.
        for name, option in _options_of(type(self)).items():
            object.__setattr__(self, name, option.check(name, getattr(self, name)))

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Self:
        """Read Spark's options, which are text, and whose names may be in lower case.

        Raises:
            OptionError: An option is unknown or has an invalid value.
        """
        fields = _options_of(cls)
        known = {name: field for field, option in fields.items() for name in option.names.split()}
        spelled = {name.lower(): name for name in known}
        unknown = sorted(name for name in options if name.lower() not in {*spelled, *_SPARK_OPTIONS})
        if unknown:
            advice = [_REMEDIES[name.lower()] for name in unknown if name.lower() in _REMEDIES]
            known_ones = f"the options are {', '.join(sorted(known))}"
            raise OptionError(f"unknown option {', '.join(unknown)}; {'; '.join([*dict.fromkeys(advice), known_ones])}")
        _check_locality(options)
        found = {}
        for given, text in options.items():
            if given.lower() in spelled:
                name = spelled[given.lower()]
                field = known[name]
                # Checked here as well, so that a message has the caller's name.
                found[field] = fields[field].check(name, _value(text, getattr(cls, field)))
        return cls(**found)


def _check_locality(options: Mapping[str, str]) -> None:
    """Refuse files on the executors' own disks, which TensorFlow's connector writes with ``writeLocality=local``."""
    given = next((value for name, value in options.items() if name.lower() == "writelocality"), "distributed")
    if given.lower() != "distributed":
        raise OptionError(
            f"writeLocality {given!r} is not 'distributed': all files are published at once, which the executors' own "
            f"disks do not allow; leave it out, and give a folder that driver and executors share"
        )


def _options_of(options: type[_Options]) -> Mapping[str, _Option]:
    """Return the option of each field, by the field's name."""
    hints = get_type_hints(options, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


@dataclass(frozen=True)
class WriteOptions(_Options):
    """Options of a write.

    Attributes:
        record_type: The message in the payload of each record.
        layout: One row per record, or blocks of rows.
        codec: ``none``, ``gzip`` or ``zlib``, or the class name of one of Hadoop's codecs.
        rows_per_block: Rows in one record of the block layout.
        max_rows_per_file: A task begins a new file after this many rows; 0 for one file per task.
    """

    record_type: Annotated[arrow_schema.RecordType, _Option("recordType", _choice(arrow_schema.RecordType))] = (
        arrow_schema.RecordType.EXAMPLE
    )
    layout: Annotated[Layout, _Option("layout", _choice(Layout))] = Layout.ROW
    codec: Annotated[str, _Option("codec compression", _codec)] = "none"
    rows_per_block: Annotated[int, _Option("rowsPerBlock", _number_from(1))] = table_blocks.ROWS_PER_BLOCK
    max_rows_per_file: Annotated[int, _Option("maxRecordsPerFile", _number_from(0))] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout is Layout.BLOCK and self.record_type is not arrow_schema.RecordType.EXAMPLE:
            raise OptionError(
                f"layout 'block' with record type {self.record_type}: a block is an Example; use the row layout"
            )


@dataclass(frozen=True)
class ReadOptions(_Options):
    """Options of a read. Layout and compression are detected from the content.

    Attributes:
        record_type: The message in the payload of each record.
        codec: The compression that files must have; None to detect it from the content.
        on_damage: The treatment of damaged records.
        verify_checksums: Compare the checksums of each record.
        sample_files: The number of files to infer a schema from, spread over all; 0 for all files.
        base_path: Folder below which folders like ``day=3`` are columns; None for the location itself.
    """

    record_type: Annotated[arrow_schema.RecordType, _Option("recordType", _choice(arrow_schema.RecordType))] = (
        arrow_schema.RecordType.EXAMPLE
    )
    codec: Annotated[str | None, _Option("codec compression", _codec_or_none)] = None
    on_damage: Annotated[OnDamage, _Option("onDamage", _choice(OnDamage))] = OnDamage.FAIL
    verify_checksums: Annotated[bool, _Option("verifyChecksums", _flag)] = True
    sample_files: Annotated[int, _Option("sampleFiles", _number_from(0))] = 0
    base_path: Annotated[str | Path | StoragePath | None, _Option("basePath", _location)] = None


def _value(text: str, default: object) -> object:
    """Return the value of an option's text; invalid text is returned as it is, for the option's check to refuse."""
    if isinstance(default, bool):
        return text.lower() in _TRUE if text.lower() in _TRUE + _FALSE else text
    return int(text) if isinstance(default, int) and text.isascii() and text.isdecimal() else text

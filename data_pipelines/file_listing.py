"""Which files a read means: paths, folders and globs on any store, partition folders, and their shares of the tasks."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.publish import is_hidden
from data_pipelines.storage import StoragePath, StoredFile

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""The value in a partition folder's name that stands for null, as Hive and Spark write it."""

# What Spark escapes in the name of a partition folder (Hive's list).
_ESCAPED = re.compile(r"[\x00-\x1f\"#%'*/:=?\\\x7f{\[\]^]")
_GLOB = re.compile(r"[*?\[{]")
# What HDFS calls a file while it is uploaded.
_UPLOADING = "._COPYING_"
# Not Arrow's parser, which also takes 0x10, nor Python's, which takes 1_0: what Spark takes for numbers.
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UTC_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")
# Spark's own defaults for files: a task reads so much, and opening a file costs as much time as reading so much.
_TASK_BYTES = 128 * 2**20
_OPEN_COST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class DataFile:
    """One file to read.

    Attributes:
        path: Where it is.
        bytes: Its size.
        partition: Name and value of each partition folder that it is in, from the outside in; None is null.
    """

    path: StoragePath
    bytes: int
    partition: tuple[tuple[str, str | None], ...] = ()


def list_files(
    locations: str | Path | StoragePath | Iterable[str | Path | StoragePath],
    *,
    base_path: str | Path | StoragePath | None = None,
) -> list[DataFile]:
    """Return the files at ``locations``: files, folders with all that is below them, and globs of both.

    Files that are empty, hidden (a name with ``.`` or ``_`` in front) or on their way (``._COPYING_``) are passed over.
    In a glob ``*``, ``?``, ``[abc]`` and ``{a,b}`` mean what they mean to Hadoop and match within one folder; a path
    that exists as it is written is no glob. Where a location is on an object store, ``?`` begins its options.

    Args:
        locations: One location or several.
        base_path: Folder below which folders like ``day=3`` are partition folders; the location itself by default.

    Raises:
        FileNotFoundError: Nothing is at a location.
        StorageError: No store here serves a location.
        ValueError: A glob is none.
    """
    many = [locations] if isinstance(locations, str | Path | StoragePath) else list(locations)
    base = StoragePath.of(base_path) if base_path is not None else None
    files = [file for location in many for file in _files_at(StoragePath.of(location), base)]
    return list(dict.fromkeys(files))


def _files_at(location: StoragePath, base: StoragePath | None) -> list[DataFile]:
    if location.is_file():
        root = base or location.parent
        return _data_files([StoredFile(location, location.size(), 0)], root if base else None, location.parent)
    if location.exists():
        return _data_files(location.files(), base or location, location)
    if not _GLOB.search(location.uri):
        raise FileNotFoundError(f"nothing is at {location}; check the path")
    found = [file for pattern in _without_braces(location.uri) for file in _matching(location, pattern, base)]
    if not found:
        raise FileNotFoundError(f"nothing matches {location}; check the pattern")
    return found


def reads(location: StoragePath, file: StoragePath) -> bool:
    """Return whether :func:`list_files` would find ``file`` at a location, were it there."""
    if location.uri == file.uri or (file.is_in(location) and not is_hidden(file.relative_to(location))):
        return True
    is_glob = _GLOB.search(location.uri) and not location.exists()
    patterns = _without_braces(location.uri) if is_glob else []
    return any(_Glob.of(location, pattern).takes(file) for pattern in patterns)


def _data_files(files: Sequence[StoredFile], root: StoragePath | None, shown: StoragePath) -> list[DataFile]:
    """Return those of ``files`` that are neither empty nor hidden below ``shown``."""
    return [
        DataFile(file.path, file.bytes, _partition_of(file.path.relative_to(root)) if root else ())
        for file in files
        if file.bytes and not is_hidden(file.path.relative_to(shown)) and not file.path.name.endswith(_UPLOADING)
    ]


def _matching(location: StoragePath, pattern: str, base: StoragePath | None) -> list[DataFile]:
    """Return the files that match, and those below the folders that match: these are their partition folders' roots."""
    glob = _Glob.of(location, pattern)
    found = []
    for file in glob.folder.files():
        if not glob.matches(file.path):
            continue
        names = file.path.relative_to(glob.folder).split("/")
        root = glob.folder
        for name in names[: min(len(glob.expressions), len(names) - 1)]:
            root = root / name
        found += _data_files([file], base or root, glob.folder)
    return found


@dataclass(frozen=True)
class _Glob:
    """A pattern without braces.

    Attributes:
        folder: What comes before the first part that is no name.
        expressions: Of the parts from there on.
    """

    folder: StoragePath
    expressions: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, location: StoragePath, pattern: str) -> "_Glob":
        parts = pattern.split("/")
        fixed = next((number for number, part in enumerate(parts) if _GLOB.search(part)), len(parts) - 1)
        folder = StoragePath("/".join(parts[:fixed]) or "/", location.query)
        try:
            return cls(folder, tuple(re.compile(_expression(part)) for part in parts[fixed:]))
        except re.error as error:
            raise ValueError(f"{location} is no glob: {error}; a range in brackets goes up, as in [a-z]") from error

    def matches(self, file: StoragePath) -> bool:
        """Whether a file below the folder matches, or a folder that it is in."""
        names = file.relative_to(self.folder).split("/")
        is_long_enough = len(names) >= len(self.expressions)
        return is_long_enough and all(e.fullmatch(n) for e, n in zip(self.expressions, names, strict=False))

    def takes(self, file: StoragePath) -> bool:
        """Whether the file is below the folder, matches and is not hidden."""
        return file.is_in(self.folder) and self.matches(file) and not is_hidden(file.relative_to(self.folder))


def _expression(part: str) -> str:
    """Return the regular expression of one part of a glob; a leading dot is matched by a dot only."""
    out = ""
    at = 0
    while at < len(part):
        character = part[at]
        end = part.find("]", at + 2) if character == "[" else -1
        if character == "*":
            out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif end > 0:
            inside = part[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            out += f"[{'^' + inside[1:] if inside.startswith(('!', '^')) else inside}]"
            at = end
        else:
            out += re.escape(character)
        at += 1
    return out


def _without_braces(pattern: str) -> list[str]:
    """Return the patterns that ``{a,b}`` stands for; a brace that is not closed is a character."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [expanded for choice in found[1].split(",") for expanded in _without_braces(before + choice + after)]


def _partition_of(relative_path: str) -> tuple[tuple[str, str | None], ...]:
    folders = [folder.partition("=") for folder in relative_path.split("/")[:-1]]
    return tuple(
        (unquote(name), None if value == NULL_PARTITION else unquote(value))
        for name, equals, value in folders
        if name and equals
    )


def partition_folder(names: Sequence[str], values: Sequence[str | None]) -> str:
    """Return the folders of these partition values, as Spark names them: ``day=3/place=a%2Fb``."""
    return "/".join(
        f"{_escaped(name)}={_escaped(value) if value else NULL_PARTITION}"
        for name, value in zip(names, values, strict=True)
    )


def _escaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", text)


def partition_schema(files: Sequence[DataFile]) -> pa.Schema:
    """Return the columns that the partition folders of ``files`` make, typed as Spark would: by all their values.

    Whole numbers become int32 or int64, other numbers float64, ISO dates date32, timestamps that end in ``Z`` (UTC)
    timestamps, all else strings; whole numbers of more than 64 bits too, so that no digit is lost.

    Raises:
        ValueError: Some files are in folders of other names than the rest.
    """
    names = [tuple(name for name, _ in file.partition) for file in files]
    for file, found in zip(files, names, strict=True):
        if found != names[0]:
            raise ValueError(
                f"the partition folders of {file.path} are {list(found)} and those of {files[0].path} are "
                f"{list(names[0])}; read them apart, or name the folder above them as base path"
            )
    return pa.schema(
        [
            (name, _partition_type([file.partition[level][1] for file in files]))
            for level, name in enumerate(names[0] if names else ())
        ]
    )


def partition_column(value: str | None, type_: pa.DataType, rows: int) -> pa.Array:
    """Return ``rows`` times the value of a partition folder; a timestamp without a zone is taken to be in UTC.

    Raises:
        ValueError: The value is none of that type.
    """
    try:
        scalar = _partition_value(value, type_)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"the partition value {value!r} is no {type_}; give its column another type") from error
    return pa.repeat(scalar, rows)


def _partition_value(value: str | None, type_: pa.DataType) -> pa.Scalar:
    if value is not None and pa.types.is_integer(type_):
        if not _WHOLE_NUMBER.fullmatch(value):
            raise ValueError("it is not written as a whole number")
        return pa.scalar(int(value), type_)
    text = pa.scalar(value, pa.string())
    if pa.types.is_timestamp(type_):
        if value is not None and value.endswith("Z"):
            moment = pc.cast(text, pa.timestamp(type_.unit, tz="UTC"))
        else:
            moment = pc.cast(text, pa.timestamp(type_.unit))
        # Both count from the epoch in UTC; only the zone that is shown differs.
        return moment.cast(pa.int64()).cast(type_)
    return pc.cast(text, type_)


def _partition_type(values: Sequence[str | None]) -> pa.DataType:
    texts = [value for value in values if value is not None]

    def all_are(pattern: re.Pattern[str]) -> bool:
        return bool(texts) and all(map(pattern.fullmatch, texts))

    if all_are(_WHOLE_NUMBER):
        bits = max(int(text).bit_length() if int(text) >= 0 else (-int(text) - 1).bit_length() for text in texts)
        return pa.int32() if bits < 32 else pa.int64() if bits < 64 else pa.string()
    if all_are(_NUMBER):
        return pa.float64()
    if all_are(_DATE) and _fit(texts, pa.date32()):
        return pa.date32()
    moment = pa.timestamp("us", tz="UTC")
    return moment if all_are(_UTC_TIMESTAMP) and _fit(texts, moment) else pa.string()


def _fit(texts: Sequence[str], type_: pa.DataType) -> bool:
    """Whether all of ``texts`` are of that type: the 31st of February is no date."""
    try:
        pc.cast(pa.array(texts, pa.string()), type_)
    except pa.ArrowInvalid:
        return False
    return True


def pack_files(files: Sequence[DataFile], slots: int) -> list[tuple[DataFile, ...]]:
    """Deal files to tasks, large ones first: a file is read by one task, small ones share one.

    Args:
        files: What there is to read.
        slots: Tasks that run at the same time; each gets something to do where the files allow it.
    """
    total = sum(file.bytes + _OPEN_COST_BYTES for file in files)
    limit = min(_TASK_BYTES, max(_OPEN_COST_BYTES, total // max(1, slots)))
    tasks: list[list[DataFile]] = []
    filled = limit
    for file in sorted(files, key=lambda file: (-file.bytes, file.path)):
        cost = file.bytes + _OPEN_COST_BYTES
        if filled + cost > limit:
            tasks.append([])
            filled = 0
        tasks[-1].append(file)
        filled += cost
    return [tuple(task) for task in tasks]

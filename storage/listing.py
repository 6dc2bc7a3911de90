"""Listing of input files: paths, folders and globs on any store, partition folders, and the division among tasks."""

import errno
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.storage.lakes import lakes_below, refuse_lake_read, unread
from mirrorspark.storage.paths import StoragePath, StoredFile
from mirrorspark.storage.publish import (
    JOURNAL_FILE,
    OPEN_FILE,
    STAGING_PREFIX,
    Journal,
    UnsafeJournalError,
    WriteInProgressError,
    is_hidden,
    is_open,
    renames,
    stagings,
)

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""The value in a partition folder's name that stands for null, as Hive and Spark write it."""

# Characters that Spark escapes in the name of a partition folder (Hive's list).
_ESCAPED = re.compile(r"[\x00-\x1f\"#%'*/:=?\\\x7f{\[\]^]")
_STAGING = re.compile(rf"(.*/)?{re.escape(STAGING_PREFIX)}[^/]*(?=/)")
# A publish may proceed while its files are listed, so the listing is repeated up to this many times.
_LISTINGS = 10
_GLOB = re.compile(r"[*?\[{]")
# Suffix of a file that HDFS is still receiving.
_UPLOADING = "._COPYING_"
# Spark's notion of numbers. Arrow's parser also accepts 0x10, and Python's accepts 1_0.
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UTC_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")
# Spark's defaults: the bytes that one task reads, and the bytes that could be read in the time of opening a file.
_TASK_BYTES = 128 * 2**20
_OPEN_COST_BYTES = 4 * 2**20

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFile:
    """One file to read.

    Attributes:
        partition: Name and value of each partition folder above the file, outermost first; None is null.
        root: The folder that holds them; None without such folders.
    """

    path: StoragePath
    bytes: int
    partition: tuple[tuple[str, str | None], ...] = ()
    root: StoragePath | None = field(default=None, compare=False)


def list_files(
    locations: str | Path | StoragePath | Iterable[str | Path | StoragePath],
    *,
    base_path: str | Path | StoragePath | None = None,
) -> list[DataFile]:
    """Return the files at ``locations``: files, folders with everything below them, and globs of both.

    Files that are empty, hidden (a name that begins with ``.`` or ``_``) or being uploaded (``._COPYING_``) are
    skipped. In a glob ``*``, ``?``, ``[abc]`` and ``{a,b}`` have Hadoop's meaning and match within one folder. A path
    that exists literally is not treated as a glob. In a location on an object store, ``?`` begins the store's options.

    Args:
        locations: One location or several.
        base_path: Folder below which folders like ``day=3`` are partition folders; the location itself by default.

    Raises:
        FileNotFoundError: Nothing is at a location.
        LakeTableError: Files belong to a table whose log says which of them count.
        StorageError: A location's scheme is not supported.
        ValueError: A glob is malformed.
        WriteInProgressError: One write after the other has published while the files were listed.
    """
    many = [locations] if isinstance(locations, str | Path | StoragePath) else list(locations)
    base = StoragePath.of(base_path) if base_path is not None else None
    refuse_lake_read(*many)
    files = [file for location in many for file in _files_at(StoragePath.of(location), base)]
    return list(dict.fromkeys(files))


def _files_at(location: StoragePath, base: StoragePath | None) -> list[DataFile]:
    if location.is_file():
        root = base or location.parent
        return _data_files([StoredFile(location, location.size(), 0)], root if base else None, location.parent)
    if location.exists():
        files = _published_files(location)
        found = _data_files(files, base or location, location)
        _refuse_lakes(location, files, found)
        return found
    if not _GLOB.search(location.uri):
        if location.is_local and stagings(location):
            raise FileNotFoundError(
                f"nothing is at {location} but a write that is under way or was cut off; python -m "
                f"mirrorspark.storage.repair {location} shows it, and ends it with --apply"
            )
        raise FileNotFoundError(f"nothing is at {location}; check the path")
    found = [file for pattern in _without_braces(location.uri) for file in _matching(location, pattern, base)]
    if not found:
        raise FileNotFoundError(f"nothing matches {location}; check the pattern")
    return found


def is_pattern(location: StoragePath) -> bool:
    """Return whether a location has characters of a pattern; it is none if a file has its name."""
    return _GLOB.search(location.uri) is not None


def reads(location: StoragePath, file: StoragePath) -> bool:
    """Return whether :func:`list_files` would find ``file`` at a location if the file existed."""
    if location.uri == file.uri or (file.is_in(location) and not is_hidden(file.relative_to(location))):
        return True
    is_glob = _GLOB.search(location.uri) and not location.exists()
    patterns = _without_braces(location.uri) if is_glob else []
    return any(_Glob.of(location, pattern).takes(file) for pattern in patterns)


def _data_files(files: Sequence[StoredFile], root: StoragePath | None, shown: StoragePath) -> list[DataFile]:
    """Return the ``files`` that are neither empty nor hidden below ``shown``."""
    found = []
    for file in files:
        if file.bytes and not is_hidden(file.path.relative_to(shown)) and not file.path.name.endswith(_UPLOADING):
            partition = _partition_of(file.path.relative_to(root)) if root else ()
            found.append(DataFile(file.path, file.bytes, partition, root if partition else None))
    return found


def _published_files(folder: StoragePath) -> list[StoredFile]:
    """Return the files below ``folder``, without those not yet published and those already replaced."""
    before: list[StoredFile] = []
    for _ in range(_LISTINGS):
        files = folder.files()
        left_out = _unpublished(folder, files, is_unchanged=files == before)
        if left_out is not None:
            return [file for file in files if file.path not in left_out]
        before = files
    raise WriteInProgressError(
        errno.EBUSY,
        f"writes have changed it while its files were listed, {_LISTINGS} times in a row; wait until they are over, "
        f"then read again",
        str(folder),
    )


def _unpublished(folder: StoragePath, files: Sequence[StoredFile], *, is_unchanged: bool) -> set[StoragePath] | None:
    """Return the ``files`` to leave out, or None if a publish has proceeded since they were listed.

    With ``is_unchanged``, others have deleted a committed publish's missing files: an earlier listing was the same.
    """
    found = {file.path for file in files}
    left_out: set[StoragePath] = set()
    for path in {match[0] for file in files if (match := _STAGING.match(file.path.relative_to(folder)))}:
        staging = folder / path
        target = staging.parent
        # A staging folder next to its target has a name that ends in the target's.
        if beside := staging.name.removeprefix(STAGING_PREFIX).partition(".")[2]:
            target /= beside
        with suppress(UnsafeJournalError):
            journal = Journal.find(staging)
            if journal is None:
                # Listed while the journal counted, which is over now: some of its files may have been there, or gone.
                if not staging.exists() or _was_publishing(staging, found):
                    return None
                continue
            added = {target / name for name in journal.files}
            if journal.is_moved and not added <= found and not is_unchanged:
                return None
            replaced = {target / name for name in journal.deletes}
            hidden = _that_may_be_hidden(found & (replaced if journal.is_moved else added), staging, target)
            if hidden is None:
                return None
            left_out |= hidden
    return left_out


def _that_may_be_hidden(files: set[StoragePath], staging: StoragePath, target: StoragePath) -> set[StoragePath] | None:
    """Return those of ``files`` that a journal may hide, or None if it has gone.

    The journal of the reader, of root or of the owner of the target folder may hide all files, and any other only files
    of its own owner. Objects of a store have no owner: whoever may write a journal there may delete the files, too.
    """
    if not staging.is_local:
        return files
    owners = {_owner(staging), _owner(staging / JOURNAL_FILE)}
    if None in owners:
        return None
    if owners <= {os.geteuid(), 0, _owner(target)}:
        return files
    hidden = {file for file in files if {_owner(file)} in ({None}, owners)}
    if hidden != files:
        _warn_of_foreign_journal(staging)
    return hidden


def _owner(path: StoragePath) -> int | None:
    """Return the user id of a local file, or of a link itself; None if it is missing."""
    try:
        return path.local.lstat().st_uid
    except FileNotFoundError:
        return None


@lru_cache(maxsize=1000)
def _warn_of_foreign_journal(staging: StoragePath) -> None:
    """Warn, once for each folder in this process."""
    _LOGGER.warning(
        "%s is by another user than the files that it hides, and was ignored: all files are read; if that user "
        "overwrites the folder, read again when the write is over, else find out who created it and delete it",
        staging,
    )


def _was_publishing(staging: StoragePath, found: set[StoragePath]) -> bool:
    """Return whether a write that has no journal now was open, and had one or has been closed, as of the listing."""
    was_open = renames(staging) or staging / OPEN_FILE in found
    return was_open and (staging / JOURNAL_FILE in found or not is_open(staging))


def _matching(location: StoragePath, pattern: str, base: StoragePath | None) -> list[DataFile]:
    """Return the files that match or are below a matching folder, which is the root of their partition folders."""
    glob = _Glob.of(location, pattern)
    found: list[DataFile] = []
    files = _published_files(glob.folder)
    for file in files:
        if not glob.matches(file.path):
            continue
        names = file.path.relative_to(glob.folder).split("/")
        root = glob.folder
        for name in names[: min(len(glob.expressions), len(names) - 1)]:
            root = root / name
        found += _data_files([file], base or root, glob.folder)
    _refuse_lakes(glob.folder, files, found)
    return found


def _refuse_lakes(folder: StoragePath, files: Sequence[StoredFile], found: Sequence[DataFile]) -> None:
    """Refuse files that were ``found`` if they are in a lake table that the listing of ``folder`` shows.

    Raises:
        LakeTableError: One of them is.
    """
    for table in sorted(lakes_below(folder, (file.path.relative_to(folder) for file in files)), key=str):
        if any(file.path.is_in(table.folder) for file in found):
            raise unread(table)


@dataclass(frozen=True)
class _Glob:
    """A pattern without braces.

    Attributes:
        folder: The path before the first part with a wildcard.
        expressions: Regular expressions of the parts from there on.
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
            raise ValueError(
                f"{location} is not a valid glob: {error}; a range in brackets must ascend, as in [a-z]"
            ) from error

    def matches(self, file: StoragePath) -> bool:
        """Return whether a file below the folder matches, or one of its parent folders does."""
        names = file.relative_to(self.folder).split("/")
        is_long_enough = len(names) >= len(self.expressions)
        return is_long_enough and all(e.fullmatch(n) for e, n in zip(self.expressions, names, strict=False))

    def takes(self, file: StoragePath) -> bool:
        """Return whether the file is below the folder, matches and is not hidden."""
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
    """Return the patterns that ``{a,b}`` expands to; an unclosed brace is an ordinary character."""
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
    """Return the path of the folders for these partition values, in Spark's form: ``day=3/place=a%2Fb``."""
    return "/".join(
        f"{_escaped(name)}={_escaped(value) if value else NULL_PARTITION}"
        for name, value in zip(names, values, strict=True)
    )


def _escaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", text)


def partition_schema(files: Sequence[DataFile]) -> pa.Schema:
    """Return the columns of the partition folders of ``files``, as :func:`folder_types` does.

    Raises:
        ValueError: Some files are in folders with other column names than the rest.
    """
    names = [tuple(name for name, _ in file.partition) for file in files]
    for file, found in zip(files, names, strict=True):
        if found != names[0]:
            raise ValueError(
                f"the partition folders of {file.path} are {list(found)} and those of {files[0].path} are "
                f"{list(names[0])}; read them apart, or name the folder above them as base path"
            )
    return folder_types(files)


def folder_types(files: Iterable[DataFile]) -> pa.Schema:
    """Return the columns of all partition folders of ``files``, with types inferred from all values as Spark does.

    Whole numbers become int32 or int64, other numbers float64, ISO dates date32, and timestamps that end in ``Z`` (UTC)
    timestamps. Everything else becomes a string, including whole numbers of more than 64 bits, which keep all digits.
    """
    values: dict[str, list[str | None]] = defaultdict(list)
    for file in files:
        for name, value in file.partition:
            values[name].append(value)
    return pa.schema([(name, _partition_type(found)) for name, found in values.items()])


def partition_column(value: str | None, type_: pa.DataType, rows: int) -> pa.Array:
    """Return the value of a partition folder repeated ``rows`` times; a timestamp without a zone is read as UTC.

    Raises:
        ValueError: The value does not have that type.
    """
    try:
        scalar = _partition_value(value, type_)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(
            f"the partition value {value!r} is not a valid {type_}; give its column another type"
        ) from error
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
        # Both count from the epoch in UTC; only the displayed zone differs.
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
    """Return whether all of ``texts`` are valid values of that type: the 31st of February is not a date."""
    try:
        pc.cast(pa.array(texts, pa.string()), type_)
    except pa.ArrowInvalid:
        return False
    return True


def pack_files(files: Sequence[DataFile], slots: int) -> list[tuple[DataFile, ...]]:
    """Distribute files among tasks, largest first; small files share a task, and no file is split.

    Args:
        files: The files to read.
        slots: Tasks that run at the same time; each gets work if there are enough files.
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

"""The folder of a fleet: Arrow files of models, of which a change rewrites only those that it must.

::

    <folder>/fleet.arrow            the models in their order: digest, file and row; replaced in one step
    <folder>/models-<digest>.arrow  up to 1,024 models, never changed

Files that neither the new nor the former list names are removed: a process that has just read the former one still
finds its files.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mirrorspark.fleet.columns import (
    FLEET_SCHEMA,
    TERM_FIELDS,
    FleetError,
    array,
    lengths_of,
    lists_of_nulls,
    some,
)
from mirrorspark.storage import atomic_file, lakes

FORMAT_VERSION, VERSION_OF_TREES, VERSION_OF_PACKAGES = 1, 2, 3
"""A fleet has the first version that supports its models, so that earlier versions of this library read it, too."""

LIST_FILE = "fleet.arrow"

_MODELS_FILES = "models-*.arrow"
_VERSION_KEY = b"mirrorspark_fleet"
# Row: of the model in its file; rows and file_digest: of the file.
_LIST_SCHEMA = pa.schema(
    [
        ("digest", pa.string()),
        ("file", pa.string()),
        ("row", pa.int32()),
        ("rows", pa.int32()),
        ("file_digest", pa.string()),
    ]
)
_MODELS_PER_FILE = 1024
# Each file of a fleet costs a tenth of a millisecond at loading. More are merged.
_MOST_FILES = 64


class _ListError(FleetError):
    """Raised for a list that saving a fleet replaces: it is missing, damaged, or of another format."""


def write_folder(table: pa.Table, digests: Sequence[str], folder: Path) -> int:
    """Write models into a folder unless it has them, and return how many were written.

    Raises:
        FleetError: The folder holds something that is not a fleet.
        LakeTableError: The folder is, or lies in, a table that keeps a log.
    """
    lakes.refuse_lake_write(folder)
    former = _former_list(folder)
    if not former.num_rows and folder.exists() and (others := _foreign(folder)):
        raise FleetError(f"{folder} holds {some(others)} and no fleet; save the fleet in a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    stored = _kept(former, digests, folder)
    new = [place for place, digest in enumerate(digests) if digest not in stored]
    for first in range(0, len(new), _MODELS_PER_FILE):
        places = new[first : first + _MODELS_PER_FILE]
        own = [digests[place] for place in places]
        name = f"models-{hashlib.sha256(''.join(own).encode()).hexdigest()[:16]}.arrow"
        written = _write(folder / name, _compact(table.take(pa.array(places))))
        stored |= {digest: _Place(name, row, len(own), written) for row, digest in enumerate(own)}
    rows = [(digest, *astuple(stored[digest])) for digest in digests]
    listed = pa.table([pa.array(values) for values in zip(*rows, strict=True)], names=_LIST_SCHEMA.names)
    version = VERSION_OF_TREES if lengths_of(array(table, "tree_roots")).any() else FORMAT_VERSION
    if table["package"].null_count < table.num_rows:
        version = VERSION_OF_PACKAGES
    _write(folder / LIST_FILE, listed.cast(_LIST_SCHEMA).replace_schema_metadata({_VERSION_KEY: str(version)}))
    needed = {*listed["file"].to_pylist(), *former["file"].to_pylist()}
    for file in folder.glob(_MODELS_FILES):
        if file.name not in needed:
            file.unlink(missing_ok=True)
    return len(new)


def read_folder(folder: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the models in a folder and their digests.

    Raises:
        FleetError: The folder holds no fleet, or a file was changed since it was written.
    """
    listed = _list_in(folder)
    files = dict(zip(listed["file"].to_pylist(), listed["file_digest"].to_pylist(), strict=True))
    for name, digest in files.items():
        if not _is_whole(folder / name, digest):
            raise FleetError(f"{folder} is damaged: {name} is missing or not as it was written; save the fleet again")
    tables = {name: _complete(_read(folder / name)) for name in files}
    starts = dict(zip(files, np.cumsum([0, *(tables[name].num_rows for name in files)]).tolist(), strict=False))
    order = np.array([starts[name] for name in listed["file"].to_pylist()]) + listed["row"].to_numpy()
    table = pa.concat_tables(tables.values())
    if not np.array_equal(order, np.arange(table.num_rows)):
        table = table.take(pa.array(order))
    return table, tuple(listed["digest"].to_pylist())


def files_of(folder: Path) -> set[str]:
    """Return the names of the files of models that the fleet in a folder consists of.

    Raises:
        FleetError: The folder holds no fleet.
    """
    return set(_list_in(folder)["file"].to_pylist())


def _foreign(folder: Path) -> list[str]:
    """Return the names in a folder other than those of a fleet, which may be damaged, or be written at this moment."""
    names = [file.name for file in folder.iterdir() if not file.match(_MODELS_FILES)]
    return [name for name in names if name != LIST_FILE and not name.startswith(".")]


@dataclass(frozen=True)
class _Place:
    """The place of a stored model."""

    file: str
    row: int
    rows: int
    file_digest: str


def _kept(former: pa.Table, digests: Sequence[str], folder: Path) -> dict[str, _Place]:
    """Return the places of the models that stay where they are.

    Models of a file of which less than half is still used, or which is damaged, are written anew, and so are all if
    there are many files.
    """
    wanted = set(digests)
    stored = zip(*(former[name].to_pylist() for name in _LIST_SCHEMA.names), strict=True)
    places = {digest: _Place(*place) for digest, *place in stored if digest in wanted}
    used = Counter(place.file for place in places.values())
    if len(used) >= _MOST_FILES:
        return {}
    kept = {place.file: place.file_digest for place in places.values() if 2 * used[place.file] >= place.rows}
    whole = {name for name, digest in kept.items() if _is_whole(folder / name, digest)}
    return {digest: place for digest, place in places.items() if place.file in whole}


def _former_list(folder: Path) -> pa.Table:
    """Return the list of the fleet that a new one replaces, without rows if there is none that can be read."""
    try:
        return _list_in(folder)
    except _ListError:
        return _LIST_SCHEMA.empty_table()  # then all models are written


def _list_in(folder: Path) -> pa.Table:
    file = folder / LIST_FILE
    if not file.is_file():
        raise _ListError(f"{folder} holds no fleet: {LIST_FILE} is missing; name a folder that Fleet.save has written")
    listed = _read(file)
    version = (listed.schema.metadata or {}).get(_VERSION_KEY, b"").decode()
    if not version:
        raise FleetError(f"{file} is not a file of a fleet, but some other table; name another folder")
    if version not in map(str, (FORMAT_VERSION, VERSION_OF_TREES, VERSION_OF_PACKAGES)):
        raise _ListError(
            f"{file} has the format {version} of fleets, this library reads up to {VERSION_OF_PACKAGES}; use the "
            f"version of mirrorspark that wrote it, or save the fleet again"
        )
    return listed


def _read(file: Path) -> pa.Table:
    try:
        # The file stays mapped as one of its values is used.
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise _ListError(f"{file} is not a file of a fleet: {error}; save the fleet again") from error


def _write(file: Path, table: pa.Table) -> str:
    """Write a file at once, and return its digest."""
    with atomic_file.replaced(file) as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return _file_digest(file)


def _is_whole(file: Path, digest: str) -> bool:
    return file.is_file() and _file_digest(file) == digest


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _compact(table: pa.Table) -> pa.Table:
    """Return the table without the columns that :func:`_complete` restores: without values, or of terms all null."""
    kept = [field.name for field in table.schema if not _is_empty(array(table, field.name), field.name)]
    return table.select(kept)


def _is_empty(values: pa.Array, name: str) -> bool:
    if not pa.types.is_list(values.type):
        return values.null_count == len(values)
    flat = values.flatten()
    # Only the number of terms is known without the column: leaves that are all null are kept.
    return len(flat) == (flat.null_count if name in TERM_FIELDS.names else 0)


def _complete(table: pa.Table) -> pa.Table:
    """Return the table with the columns that :func:`_compact` has left out."""
    found: Mapping[str, pa.Array] = {name: array(table, name) for name in table.column_names}
    terms = lengths_of(found["column"]) if "column" in found else np.zeros(table.num_rows, np.int64)
    columns = []
    for field in FLEET_SCHEMA:
        if field.name in found:
            columns.append(found[field.name])
        elif not pa.types.is_list(field.type):
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            lengths = terms if field.name in TERM_FIELDS.names else np.zeros_like(terms)
            columns.append(lists_of_nulls(lengths, field.type.value_type))
    return pa.Table.from_arrays(columns, schema=FLEET_SCHEMA)

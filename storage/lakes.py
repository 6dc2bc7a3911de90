"""Recognition of lake tables: folders whose log says which of their files count, as Delta, Iceberg and Hudi keep them.

Read as plain files, such a table has its deleted rows again, and others never see a file that is written into it. So
every way in and out that takes a path asks here, at the cost of one request per path for some names.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mirrorspark.storage.paths import Location, StorageError, StoragePath

# Folders above a path on a store that are looked into: Iceberg keeps files up to five folders below a table (`data`,
# and four of a hash), and Delta and Hudi keep them in its partitions, which do not count. A local disk is quick.
_LEVELS_ON_STORES = 5
# They serve no folders that could be a table.
_WITHOUT_FOLDERS = ("http://", "https://")


@dataclass(frozen=True)
class LakeFormat:
    """A format of tables that keep a log.

    Attributes:
        name: Spark's name of the format.
        words: A table of this format in messages.
        log: The folder in a table that makes it one.
        ending: The end of the name of a file that there has to be in the log; empty if the folder suffices.
        needs: Packages with which a session reads the format; empty if every session reads it.
    """

    name: str
    words: str
    log: str
    ending: str = ""
    needs: str = ""


LAKE_FORMATS = (
    LakeFormat(
        "delta",
        "a Delta table",
        "_delta_log",
        needs="spark.jars.packages=io.delta:delta-spark_2.13:VERSION, with "
        "spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension and "
        "spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog",
    ),
    LakeFormat(
        "hudi",
        "a Hudi table",
        ".hoodie",
        needs="spark.jars.packages=org.apache.hudi:hudi-spark4.0-bundle_2.13:VERSION, with "
        "spark.serializer=org.apache.spark.serializer.KryoSerializer and "
        "spark.sql.extensions=org.apache.spark.sql.hudi.HoodieSparkSessionExtension",
    ),
    LakeFormat("parquet", "the output of a stream of Spark", "_spark_metadata"),
    # Other folders have this name, too.
    LakeFormat(
        "iceberg",
        "an Iceberg table",
        "metadata",
        ".metadata.json",
        needs="spark.jars.packages=org.apache.iceberg:iceberg-spark-runtime-4.0_2.13:VERSION",
    ),
)


@dataclass(frozen=True)
class LakeTable:
    """A table that keeps a log."""

    folder: StoragePath
    format: LakeFormat

    def __str__(self) -> str:
        return f"{self.folder} is {self.format.words}, whose log ({self.format.log}) says which of its files count"

    @property
    def remedy(self) -> str:
        """Way for a session to read the table, to follow a comma or semicolon."""
        other = "give the name of the table in a catalog, or a DataFrame of it"
        return f"start the session with {self.format.needs}, for the version of its Spark, or {other}"


class LakeTableError(StorageError):
    """A lake table, or a part of one, that cannot be read or written as files; the message has the remedy.

    Attributes:
        table: The table.
    """

    def __init__(self, table: LakeTable, advice: str) -> None:
        super().__init__(f"{table}; {advice}")
        self.table = table
        self.advice = advice

    def __reduce__(self) -> tuple[type["LakeTableError"], tuple[LakeTable, str]]:
        """Pickle by the parts of the message."""
        return LakeTableError, (self.table, self.advice)


class Look(Protocol):
    """A view of a store: Arrow's, or that of Spark."""

    def folders(self, places: Sequence[StoragePath]) -> set[StoragePath]:
        """Return those of ``places`` that are folders."""

    def names(self, folder: StoragePath) -> list[str]:
        """Return the names of the files directly in a folder."""


class ArrowLook:
    """The view of a store that :class:`StoragePath` has."""

    def folders(self, places: Sequence[StoragePath]) -> set[StoragePath]:
        """Return those of ``places`` that are folders."""
        by_store: dict[StoragePath, list[StoragePath]] = {}
        for place in places:
            by_store.setdefault(place.root, []).append(place)
        found = {root / name for root, own in by_store.items() for name in root.existing(_names(root, own))}
        return {place for place in found if place.is_folder()}

    def names(self, folder: StoragePath) -> list[str]:
        """Return the names of the files directly in a folder."""
        return [file.path.name for file in folder.files(recursive=False)]


def lake_around(*locations: Location, look: Look | None = None) -> LakeTable | None:
    """Return a lake table that is at a location, or in which a location lies; None for plain files.

    Args:
        locations: Files, folders or globs, which need not exist. Results of a glob are not looked at.
        look: The view of the store; by default that of Arrow.
    """
    paths = dict.fromkeys(StoragePath.of(location) for location in locations)
    folders = dict.fromkeys(folder for path in paths for folder in _around(path))
    places = {folder / format_.log: LakeTable(folder, format_) for folder in folders for format_ in LAKE_FORMATS}
    look = look or ArrowLook()
    found = look.folders(list(places))
    for place, table in places.items():  # of a path, the innermost table
        ending = table.format.ending
        if place in found and (not ending or any(name.endswith(ending) for name in look.names(place))):
            return table
    return None


def _around(path: StoragePath) -> list[StoragePath]:
    """Return a path and the folders above it that may be tables, from the innermost one.

    Partition folders have no log. Delta looks as far up itself (``DeltaTableUtils.findDeltaTableRoot``).
    """
    if path.uri.startswith(_WITHOUT_FOLDERS):
        return []
    if path.is_local:  # a link into a table leads there
        path = StoragePath(os.path.realpath(path.uri))
    found, root = [path], path.root
    while path.uri != root.uri:
        path = path.parent
        if "=" not in path.name:
            found.append(path)
    return found if path.is_local else found[: 1 + _LEVELS_ON_STORES]


def _names(root: StoragePath, places: Sequence[StoragePath]) -> list[str]:
    return [place.relative_to(root) for place in places]


def lakes_below(folder: StoragePath, names: Iterable[str]) -> set[LakeTable]:
    """Return the lake tables at ``folder`` and below it, as a listing shows them.

    Args:
        folder: The folder that was listed.
        names: The paths of all files below it, relative to it, hidden ones among them.
    """
    found = set()
    for name in names:
        for format_ in LAKE_FORMATS:
            before, log, file = f"/{name}".rpartition(f"/{format_.log}/")
            if log and (not format_.ending or ("/" not in file and file.endswith(format_.ending))):
                found.add(LakeTable(folder / before[1:] if before else folder, format_))
    return found


def refuse_lake_read(*locations: Location) -> None:
    """Refuse to read locations as plain files if a lake table is at one of them, or around it.

    Raises:
        LakeTableError: It is so.
    """
    if (table := lake_around(*locations)) is not None:
        raise unread(table)


def unread(table: LakeTable) -> LakeTableError:
    """Return the error for files of a lake table that were to be read as plain files."""
    return LakeTableError(
        table, "read it with Spark (spark.read, or the name of the table), and give the DataFrame, or its rows as files"
    )


def refuse_lake_write(target: Location) -> None:
    """Refuse to write files to a place that is, or lies in, a lake table: the table would not have them.

    Raises:
        LakeTableError: It is so.
    """
    if (table := lake_around(target)) is not None:
        raise LakeTableError(
            table,
            f"a file written to {target} would not be in the table: write to another folder, and add its rows with "
            f"Spark (df.write.format('{table.format.name}'))"
            if table.format.needs
            else f"a file written to {target} would not be read with it: write to another folder",
        )

"""Sources of rows to score: plain Parquet files, which tasks read themselves, or sources that only Spark can read."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines.reading.parquet_rows import parquet_files
from mirrorspark.data_pipelines.spark.errors import task_message
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.storage.listing import DataFile
from mirrorspark.storage.paths import Location, StoragePath, hadoop_uri

_LOGGER = logging.getLogger(__name__)

# Folders of the logs in which table formats list their valid files, with Spark's name of the format.
_LOGS = {"_delta_log": "delta", ".hoodie": "hudi", "_spark_metadata": "parquet"}


@dataclass(frozen=True)
class SparkSource:
    """A source that Spark reads.

    Attributes:
        format: A format of ``spark.read.format``, or ``table`` for a table of the catalog.
        paths: Files or folders, or the name of a table.
    """

    format: str
    paths: tuple[str, ...]

    def read(self, spark: SparkSession) -> DataFrame:
        """Return the rows.

        Raises:
            ScoringError: Spark does not know the format or table, or cannot read it.
        """
        try:
            if self.format == "table":
                (name,) = self.paths
                return spark.table(name)
            reader = spark.read.format(self.format)
            if self.format == "csv":
                reader = reader.options(header=True, inferSchema=True)
            # Table formats reject a list of paths, even with one element.
            return reader.load(self.paths[0] if len(self.paths) == 1 else list(self.paths))
        except (PySparkException, Py4JJavaError) as error:
            raise ScoringError(
                f"Spark cannot read {', '.join(self.paths)} as {self.format}: {task_message(error).rstrip('.')}; give "
                f"the session the packages and the catalog that it needs, or name another format"
            ) from error


def find_source(paths: Location | Sequence[Location], input_format: str | None) -> SparkSource | list[DataFile]:
    """Return the Parquet files at ``paths``, or a source that Spark has to read.

    Args:
        paths: Files, folders or globs; for the format ``table`` its name.
        input_format: Spark's name of the format; by default Parquet, or the format of the table whose log is found
            there.

    Raises:
        FileNotFoundError: There are no files.
        ScoringError: Only some of the files belong to a table with a log.
    """
    locations = [paths] if isinstance(paths, Location) else list(paths)
    if input_format == "table" and len(locations) != 1:
        raise ScoringError(f"a table has one name, {len(locations)} are given: {locations}; score them one by one")
    if input_format not in (None, "parquet"):
        return SparkSource(input_format, tuple(str(location) for location in locations))
    files = parquet_files(locations)
    table = _table_of(files, [StoragePath.of(location) for location in locations])
    if table is None:
        return files
    folder, log, table_format = table
    if [StoragePath.of(location) for location in locations] != [folder]:
        raise ScoringError(
            f"{folder} is a table whose log ({log}) says which of its files count; give that folder alone, or read it "
            f"with Spark, and score that with mirrorspark.scoring.batch.score"
        )
    _LOGGER.warning("%s is no folder of plain files (%s): Spark reads it, which is slower", folder, log)
    return SparkSource(table_format, (hadoop_uri(folder, locations[0]),))


def _table_of(files: Sequence[DataFile], locations: Sequence[StoragePath]) -> tuple[StoragePath, str, str] | None:
    """Return folder, log and format of the table that some files belong to; None for plain files."""
    for folder in sorted(_folders_above(files, locations), key=str):
        for log, table_format in _LOGS.items():
            if (folder / log).is_folder():
                return folder, log, table_format
        metadata = folder / "metadata"
        if metadata.is_folder() and any(
            f.path.name.endswith(".metadata.json") for f in metadata.files(recursive=False)
        ):
            return folder, "metadata", "iceberg"
    return None


def _folders_above(files: Sequence[DataFile], locations: Sequence[StoragePath]) -> set[StoragePath]:
    """Return the folders of the files, up to two levels above the given locations, which may be parts of a table.

    Tables keep their files in folders of any depth, as partitions or to spread the load. Partition folders have no log
    and may number thousands, so they are left out.
    """
    found: set[StoragePath] = set()
    for folder in {_outside_partitions(file.path.parent) for file in files}:
        depth = folder.uri.count("/")
        given = [place.uri.count("/") for place in locations if folder.is_in(place)]
        # The search ends at the bucket or the root of the disk.
        highest = max(min([depth, *given]) - 2, 0 if folder.is_local else 2)
        found.add(folder)
        for _ in range(depth - highest):
            folder = folder.parent
            found.add(folder)
    return found


def _outside_partitions(folder: StoragePath) -> StoragePath:
    while "=" in folder.name:
        folder = folder.parent
    return folder

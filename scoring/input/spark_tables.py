"""Tables that only Spark can read: other formats, and Parquet files of several schemas if their types allow it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DataType, StructField, StructType

from mirrorspark.data_pipelines import TableError, path_for_spark, read_stored
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.spark_session import SPARK_ERRORS, task_message
from mirrorspark.storage import Location, StoragePath, lakes, listing, literal_hadoop_uri

_LOGGER = logging.getLogger(__name__)

# Types that Spark 4 widens on reading when the schema is given (ParquetVectorUpdaterFactory). Its option `mergeSchema`
# does not merge different types.
_NARROWER: Mapping[str, tuple[str, ...]] = {
    "smallint": ("tinyint",),
    "int": ("tinyint", "smallint"),
    "bigint": ("tinyint", "smallint", "int"),
    "double": ("tinyint", "smallint", "int", "float"),
}


@dataclass(frozen=True)
class SparkSource:
    """A source that Spark reads.

    Attributes:
        format: A format of ``spark.read.format``, or ``table`` for a table of the catalog.
        paths: Files or folders as the user wrote them, or the name of a table.
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
            if self.format in ("csv", "json", "orc"):
                return read_stored(spark, self.paths, kind=self.format)
            # Formats of tables take no patterns, and reject a list of paths, even with one element.
            is_lake = self.format in {format_.name for format_ in lakes.LAKE_FORMATS if format_.needs}
            paths = list(self.paths) if is_lake else [path_for_spark(path) for path in self.paths]
            return spark.read.format(self.format).load(paths[0] if len(paths) == 1 else paths)
        except TableError as error:
            raise ScoringError(str(error)) from error
        except SPARK_ERRORS as error:
            needs = next((format_.needs for format_ in lakes.LAKE_FORMATS if format_.name == self.format), "")
            no_file = ", and there is no file or folder of that name" if self.format == "table" else ""
            raise ScoringError(
                f"Spark cannot read {', '.join(self.paths)} as {self.format}{no_file}: "
                f"{task_message(error).rstrip('.')}; give the session the packages and the catalog that it "
                f"needs{needs and f' ({needs})'}, or name another format"
            ) from error


def read_together(
    spark: SparkSession, paths: Location | Sequence[Location], files: parquet_rows.ParquetFiles, columns: Sequence[str]
) -> DataFrame:
    """Return the rows of Parquet files whose schemas differ, and log a warning.

    A column that a file lacks is null in its rows; numbers get the widest type of all files.

    Args:
        spark: The session.
        paths: Files, folders or globs.
        files: The files at ``paths``.
        columns: The columns to read.

    Raises:
        ScoringError: Spark cannot read them, or not as one table.
    """
    given = without_overlaps([paths] if isinstance(paths, Location) else paths)
    locations = [path_for_spark(path) for path in given]
    folders = dict(files.files[0].partition)
    example_paths = [file.path for file in files.of_each_schema(columns)]
    examples = [str(path) for path in example_paths]
    try:
        schemas = {str(path): spark.read.parquet(literal_hadoop_uri(path, *given)).schema for path in example_paths}
        schema = schema_of_all(schemas, [name for name in columns if name not in folders])
        # Spark reads subfolders only as partitions or with this option.
        reader = spark.read.schema(schema).option("recursiveFileLookup", not folders)
        table = reader.parquet(*locations)
    except SPARK_ERRORS as error:
        raise ScoringError(
            f"Spark cannot read the Parquet files at {', '.join(locations)}, whose schemas differ (those of "
            f"{examples[0]} and {examples[1]}, for example): {task_message(error)}"
        ) from error
    lacking = [name for name in schema.names if any(name not in found.names for found in schemas.values())]
    _LOGGER.warning(
        "the Parquet files at %s have %d schemas (those of %s and %s, for example): Spark reads them, which is slower; "
        "columns that some of them lack, and that are null there: %s",
        ", ".join(locations),
        len(examples),
        *examples[:2],
        ", ".join(lacking) or "none",
    )
    return table


def without_overlaps(locations: Sequence[Location]) -> list[Location]:
    """Return locations that cover all files once, because Spark reads a file as it is named.

    Raises:
        ScoringError: Two locations overlap partially.
    """
    files = {location: {file.path for file in listing.list_files(location)} for location in dict.fromkeys(locations)}
    kept: list[Location] = []
    known: set[StoragePath] = set()
    for location in sorted(files, key=lambda one: -len(files[one])):
        if not files[location] <= known:
            if both := files[location] & known:
                raise ScoringError(
                    f"{min(both)} is named twice, by {location} and by another location, and Spark has to read these "
                    f"files, which would read it twice; name every file once"
                )
            kept.append(location)
            known |= files[location]
    return [location for location in files if location in kept]


def schema_of_all(schemas: Mapping[str, StructType], columns: Sequence[str]) -> StructType:
    """Return the ``columns`` that occur in some schema, with a type in which Spark reads them from all files.

    Args:
        schemas: One schema for each kind, by an example file.
        columns: The columns to read.

    Raises:
        ScoringError: A column has types that Spark cannot read as one.
    """
    fields = []
    for name in columns:
        found = {file: schema[name].dataType for file, schema in schemas.items() if name in schema.names}
        if found:
            fields.append(StructField(name, _type_of_all(name, found)))
    return StructType(fields)


def _type_of_all(name: str, found: Mapping[str, DataType]) -> DataType:
    for wide in found.values():
        if all(_is_read_as(other, wide) for other in found.values()):
            return wide
    types = "; ".join(f"{of_file.simpleString()} in {file}" for file, of_file in found.items())
    raise ScoringError(
        f"column '{name}' has types that Spark does not read as one ({types}); write files of one schema, or cast the "
        f"column with Spark and score the DataFrame"
    )


def _is_read_as(narrow: DataType, wide: DataType) -> bool:
    return narrow == wide or narrow.simpleString() in _NARROWER.get(wide.simpleString(), ())

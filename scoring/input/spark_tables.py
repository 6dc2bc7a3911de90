"""Tables that only Spark can read: other formats, and Parquet files of several schemas."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines import TableError, path_for_spark, read_parquet_files, read_stored
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.spark_session import SPARK_ERRORS, task_message
from mirrorspark.storage import Location, lakes


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
                table = spark.table(name)
                _ = table.schema  # over Spark Connect a table is looked up here
                return table
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
    """Return the rows of Parquet files whose schemas differ, as ``ms.read_table`` does, and log a warning.

    A column that a file lacks is null in its rows; numbers get the widest type of all files.

    Args:
        spark: The session.
        paths: Files, folders or globs.
        files: The files at ``paths``.
        columns: The columns to read.

    Raises:
        ScoringError: Spark cannot read them, or not as one table.
    """
    locations = [paths] if isinstance(paths, Location) else paths
    try:
        return read_parquet_files(spark, files.files, locations, columns)
    except TableError as error:
        raise ScoringError(str(error)) from error

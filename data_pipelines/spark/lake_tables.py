"""Lake tables that Spark reads: recognised where Spark looks for a path, and read by their format."""

import os
from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession

from mirrorspark.spark_session import SPARK_ERRORS, session_of, task_message
from mirrorspark.storage import StoragePath, hadoop_uri, lakes


def read_lake_table(spark: SparkSession, *paths: str) -> DataFrame | None:
    """Return the rows of the lake table that a path names; None if the paths are plain files.

    Args:
        spark: The session.
        paths: Files, folders or globs for ``spark.read``.

    Raises:
        LakeTableError: The session cannot read the table, or only some of the files belong to it.
    """
    table = lake_seen_by(spark, paths)
    if table is None:
        return None
    if len(paths) > 1 or not _is_at(table, spark, paths[0]):
        raise lakes.LakeTableError(
            table,
            f"{', '.join(paths)} would be read without it: give the folder of the table alone, or read a part of the "
            f"table with Spark, and give the DataFrame",
        )
    if not table.format.needs:
        return None  # every session knows this log
    return load_lake_table(spark, table, hadoop_uri(table.folder, paths[0]))  # a glob or a link leads there, too


def load_lake_table(spark: SparkSession, table: lakes.LakeTable, path: str) -> DataFrame:
    """Return the rows of a lake table.

    Args:
        spark: The session.
        table: The table.
        path: Its folder for ``spark.read``.

    Raises:
        LakeTableError: The session lacks the format, or cannot read the table.
    """
    try:
        frame = spark.read.format(table.format.name).load(path)
        _ = frame.schema  # a session of Spark Connect looks for the format only now
    except SPARK_ERRORS as error:
        lacks = "[DATA_SOURCE_NOT_FOUND]" in str(error)  # an error of Java, which PySpark gives no class of its own
        why = "" if lacks else f" ({task_message(error).rstrip('.')})"
        has = "does not have" if lacks else "cannot read"
        advice = f"this session {has} the format '{table.format.name}'{why}: {table.remedy}"
        raise lakes.LakeTableError(table, advice) from error
    return frame


def refuse_lake_tables(spark: SparkSession, paths: Sequence[str]) -> None:
    """Refuse paths for ``spark.read`` of which one is, or lies in, a lake table.

    Raises:
        LakeTableError: It is so.
    """
    table = lake_seen_by(spark, paths)
    if table is not None and table.format.needs:
        raise lakes.LakeTableError(
            table, "its files are Parquet: give its folder, or the table's name, where a table is taken"
        )


def lake_seen_by(spark: SparkSession, paths: Sequence[str]) -> lakes.LakeTable | None:
    """Return a lake table that is at one of ``paths``, or around it, as Spark resolves them; None for plain files."""
    places, look = _resolved(spark, paths)
    return lakes.lake_around(*places, look=look)


def _resolved(spark: SparkSession, paths: Sequence[str]) -> tuple[list[StoragePath], lakes.Look | None]:
    """Return the files and folders that ``paths`` are to Spark, and its view of their stores."""
    look = session_of(spark).store_look(paths)
    return [place for path in paths for place in look.matching(path)], look


def _is_at(table: lakes.LakeTable, spark: SparkSession, path: str) -> bool:
    places, _ = _resolved(spark, [path])
    return [StoragePath.of(os.path.realpath(place.uri)) if place.is_local else place for place in places] == [
        table.folder
    ]

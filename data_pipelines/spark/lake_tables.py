"""Lake tables that Spark reads: recognised where Spark looks for a path, and read by their format."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from py4j.protocol import Py4JError, Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines.spark.errors import task_message
from mirrorspark.storage.lakes import LakeTable, LakeTableError, Look, lake_around
from mirrorspark.storage.paths import StoragePath, hadoop_path, hadoop_uri

# A store answers after some hundredths of a second, and is asked for all places at a time.
_QUESTIONS_AT_A_TIME = 16


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
        raise LakeTableError(
            table,
            f"{', '.join(paths)} would be read without it: give the folder of the table alone, or read a part of the "
            f"table with Spark, and give the DataFrame",
        )
    if not table.format.needs:
        return None  # every session knows this log
    return load_lake_table(spark, table, hadoop_uri(table.folder, paths[0]))  # a glob or a link leads there, too


def load_lake_table(spark: SparkSession, table: LakeTable, path: str) -> DataFrame:
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
    except (PySparkException, Py4JJavaError) as error:
        lacks = "[DATA_SOURCE_NOT_FOUND]" in str(error)  # an error of Java, which PySpark gives no class of its own
        why = "" if lacks else f" ({task_message(error).rstrip('.')})"
        has = "does not have" if lacks else "cannot read"
        advice = f"this session {has} the format '{table.format.name}'{why}: {table.remedy}"
        raise LakeTableError(table, advice) from error
    return frame


def refuse_lake_tables(spark: SparkSession, paths: Sequence[str]) -> None:
    """Refuse paths for ``spark.read`` of which one is, or lies in, a lake table.

    Raises:
        LakeTableError: It is so.
    """
    table = lake_seen_by(spark, paths)
    if table is not None and table.format.needs:
        raise LakeTableError(
            table, "its files are Parquet: give its folder, or the table's name, where a table is taken"
        )


def lake_seen_by(spark: SparkSession, paths: Sequence[str]) -> LakeTable | None:
    """Return a lake table that is at one of ``paths``, or around it, as Spark resolves them; None for plain files."""
    places, look = _resolved(spark, paths)
    return lake_around(*places, look=look)


def _resolved(spark: SparkSession, paths: Sequence[str]) -> tuple[list[StoragePath], Look | None]:
    """Return the files and folders that ``paths`` are to Spark, and its view of their stores."""
    if not hasattr(spark, "_jvm"):  # Spark Connect, whose server has the stores
        return [path for path in map(StoragePath.of, paths) if path.is_local], None
    look = _HadoopLook(spark, paths)
    return [place for path in paths for place in look.matching(path)], look


def _is_at(table: LakeTable, spark: SparkSession, path: str) -> bool:
    places, _ = _resolved(spark, [path])
    return [StoragePath.of(os.path.realpath(place.uri)) if place.is_local else place for place in places] == [
        table.folder
    ]


class _HadoopLook:
    """Spark's own view of stores: its default file system, its connectors and its credentials may be others than ours.

    A path that it cannot open has no tables here; Spark says so in its own words when it reads.
    """

    def __init__(self, spark: SparkSession, given: Sequence[str]) -> None:
        self._path = spark._jvm.org.apache.hadoop.fs.Path  # type: ignore[union-attr]
        self._settings = spark._jsparkSession.sessionState().newHadoopConf()
        self._given = given

    def matching(self, path: str) -> list[StoragePath]:
        """Return the files and folders that a path or a glob names; the path itself if there are none."""
        try:
            named = self._path(path)
            store = named.getFileSystem(self._settings)
            found = [status.getPath() for status in store.globStatus(named) or ()]
            return [hadoop_path(one.toUri().toString()) for one in found or [store.makeQualified(named)]]
        except (Py4JError, PySparkException):
            return []

    def folders(self, places: Sequence[StoragePath]) -> set[StoragePath]:
        """Return those of ``places`` that are folders."""
        with ThreadPoolExecutor(_QUESTIONS_AT_A_TIME) as pool:
            return {
                place for place, is_there in zip(places, pool.map(self._is_folder, places), strict=True) if is_there
            }

    def names(self, folder: StoragePath) -> list[str]:
        """Return the names of the files directly in a folder."""
        path = self._path(hadoop_uri(folder, *self._given))
        found = path.getFileSystem(self._settings).listStatus(path)
        return [status.getPath().getName() for status in found if status.isFile()]

    def _is_folder(self, place: StoragePath) -> bool:
        path = self._path(hadoop_uri(place, *self._given))
        try:
            return bool(path.getFileSystem(self._settings).isDirectory(path))
        except (Py4JError, PySparkException):
            return False

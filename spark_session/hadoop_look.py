"""Stores as Hadoop's file systems in the JVM of a classic session see them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from mirrorspark.spark_session.connect_look import is_refusal, is_refusal_of_store
from mirrorspark.storage import StoragePath, hadoop_path, hadoop_uri

# A store answers after some hundredths of a second, so several places are looked up at a time.
_QUESTIONS_AT_A_TIME = 16
# Hadoop's only error for a folder of a disk that may not be read.
_UNREADABLE = "(java.io.IOException) Invalid directory or I/O error occurred"


class HadoopLook:
    """Spark's own view of stores: its default file system, connectors and credentials may differ from ours.

    A path that it cannot open has no tables here; Spark raises its own error when it reads the path.
    """

    def __init__(self, spark: SparkSession, given: Sequence[str]) -> None:
        """Take the session, and the paths that its user has given."""
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
        except (Py4JJavaError, PySparkException) as error:
            if not _is_refusal(error):
                raise  # a table may be there all the same
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
        except (Py4JJavaError, PySparkException) as error:
            if not _is_refusal(error):
                raise
            return False


def _is_refusal(error: Py4JJavaError | PySparkException) -> bool:
    """Return True if the path cannot be opened; a store or a JVM that fails is another matter."""
    if isinstance(error, PySparkException):  # PySpark's own class for an error of Java
        return is_refusal(error)
    java = error.java_exception
    text = f"({java.getClass().getName()}) {java.getMessage()}"
    return is_refusal_of_store(text) or text.startswith(_UNREADABLE)

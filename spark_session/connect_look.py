"""Stores as the server of a Spark Connect session sees them, by the files that it would read."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pyspark.errors import (
    AnalysisException,
    IllegalArgumentException,
    PySparkException,
    UnsupportedOperationException,
)
from pyspark.sql import SparkSession

from mirrorspark.storage import Location, StoragePath, hadoop_path, literal_hadoop_uri

_QUESTIONS_AT_A_TIME = 16
_PATTERN = "*?[{"
# Classes of SQLSTATE of a request that a server refuses as it is: names that do not exist or are forbidden, settings
# that are fixed, values that are not valid, files that cannot be read. A lost session has 08 or HY, a lost connection
# none.
_REFUSALS = ("42", "46110", "22", "KD001")
# The same without a SQLSTATE: errors with a class in PySpark, and those of stores, which begin with that of Java.
_REFUSING = (AnalysisException, IllegalArgumentException, UnsupportedOperationException)
_REFUSED_BY_STORE = re.compile(
    r"\((?:java\.lang\.RuntimeException\) java\.lang\.ClassNotFoundException: Class |java\.io\.FileNotFoundException\)|"
    r"(?:[\w$]+\.)+(?:AccessControl|AccessDenied|UnauthorizedAccess|UnsupportedFileSystem)Exception\))"
)


def is_refusal(error: PySparkException) -> bool:
    """Return True if a server has answered that there is no such thing, or that it is forbidden.

    That a session or a connection was lost, or that a store fails, is another matter.
    """
    state = error.getSqlState()
    if state:
        return state.startswith(_REFUSALS)
    return isinstance(error, _REFUSING) or is_refusal_of_store(str(error))


def is_refusal_of_store(text: str) -> bool:
    """Return True for Java's error of a path that is missing or forbidden, or for which there is no connector.

    Args:
        text: The class of the error in parentheses, and its message.
    """
    return _REFUSED_BY_STORE.match(text) is not None


class ConnectLook:
    """The server's view of stores. A path that it cannot open has no tables here."""

    def __init__(self, spark: SparkSession, given: Sequence[Location], *, shares_disk: bool) -> None:
        """Take the session, the paths that its user has given, and True if its server has this process's disk."""
        self._spark = spark
        self._given = given
        self._shares_disk = shares_disk

    def matching(self, path: str) -> list[StoragePath]:
        """Return a path, or the folders of the files that a glob names."""
        if not any(character in path for character in _PATTERN):
            return [hadoop_path(path) if ":" in path else StoragePath.of(path)]
        return list(dict.fromkeys(hadoop_path(file).parent for file in self._files(path) or ()))

    def folders(self, places: Sequence[StoragePath]) -> set[StoragePath]:
        """Return those of ``places`` that are folders."""
        with ThreadPoolExecutor(_QUESTIONS_AT_A_TIME) as pool:
            return {
                place for place, is_there in zip(places, pool.map(self._is_folder, places), strict=True) if is_there
            }

    def names(self, folder: StoragePath) -> list[str]:
        """Return the names of the files directly in a folder that Spark shows.

        It hides those that begin with a dot, with an underscore unless there is a ``=``, or end in ``._COPYING_``.
        """
        files = [hadoop_path(file) for file in self._files(literal_hadoop_uri(folder, *self._given)) or ()]
        return [file.name for file in files if file.parent == folder]

    def _is_folder(self, place: StoragePath) -> bool:
        if place.is_local and self._shares_disk:
            return place.is_folder()
        files = self._files(literal_hadoop_uri(place, *self._given))
        return files is not None and [hadoop_path(file) for file in files] != [place]

    def _files(self, path: str) -> list[str] | None:
        """Return the files at a path of ``spark.read``; None if the server does not see it."""
        try:
            return list(self._spark.read.format("binaryFile").load(path).inputFiles())
        except PySparkException as error:
            if is_refusal(error):
                return None
            raise  # a table may be there all the same

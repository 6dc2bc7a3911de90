"""Tables in any of the forms that users have, as Spark DataFrames."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines.csv_tables import CsvError, csv_form, require_sound
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.memory_tables import (
    TableError,
    categories_of,
    in_arrow,
    require_different,
    require_different_but_for_case,
)
from mirrorspark.data_pipelines.packed_files import PackedFileError
from mirrorspark.data_pipelines.sources import MemorySource
from mirrorspark.data_pipelines.spark import collected, with_notes
from mirrorspark.data_pipelines.stored_tables import KINDS, is_path, read_stored, suffix_of
from mirrorspark.spark_session import CASE_SENSITIVE, on_running_session, require_running, session_of, task_message
from mirrorspark.storage import Location, StoragePath, lacking

# The SQLSTATE of a privilege that a user lacks.
_FORBIDDEN = "42501"
# Names of tables that need no backticks, or have some.
_PLAIN_NAME = re.compile(r"[\w.]+|.*`.*")


@on_running_session
def read_table(
    spark: SparkSession, table: Any, *, encoding: str | None = None, separator: str | None = None
) -> DataFrame:
    """Return ``table`` as a Spark DataFrame.

    A path is the file that Python sees: relative to the working directory, ``~`` the user's home. It is a pattern with
    ``*``, ``?``, ``[abc]`` and ``{a,b}`` only if no file has its name. CSV files have a header, and are read as
    ``pandas.read_csv`` reads them: cells may hold quotes and line breaks, and ``NA``, ``null`` and the like are missing
    values; so are ``?`` and ``-`` in columns of numbers, whose decimals may have a comma. A byte order mark gives the
    encoding.

    Args:
        spark: The session.
        table: A Spark DataFrame, which is returned as it is; a pandas DataFrame (without its index; NaN becomes null),
            a Polars DataFrame or LazyFrame, a PyArrow table; the name of a table or view; or the path, or a list of
            paths, of files or folders of Parquet, CSV, JSON (lines, a list or documents) or ORC, or of a Delta, Iceberg
            or Hudi table, for which the session needs that format.
        encoding: The encoding of CSV files in Python's words, such as ``"windows-1252"``.
        separator: The separator of CSV files.

    Raises:
        LakeTableError: The path is a Delta, Iceberg or Hudi table that the session cannot read, or a part of one.
        TableError: It is none of these, the file does not exist, is of another kind or damaged, its files do not make
            one table, or no column of a table in memory can be held by Spark.
    """
    is_frame = hasattr(table, "sparkSession")  # of Spark Classic or Spark Connect
    require_running(table.sparkSession if is_frame else spark)
    if isinstance(table, str) and not table.strip():
        raise TableError("the name of the table is empty; give the name of a table, or the path of its files")
    if is_frame:
        df = table
    elif isinstance(table, Location):
        df = _stored(spark, table, encoding, separator)
    elif isinstance(table, list | tuple) and table and all(isinstance(one, Location) for one in table):
        df = read_stored(spark, table, encoding=encoding, separator=separator)
    else:
        arrow = in_arrow(table)
        _require_different(spark, arrow.column_names)
        df = session_of(spark).table_of(arrow)
        noted = {
            field.name: {name: json.loads(order) for name, order in categories_of(field).items()}
            for field in arrow.schema
        }
        return with_notes(df, noted)
    _require_different(spark, df.columns)
    return df


def _require_different(spark: SparkSession, names: Sequence[str]) -> None:
    """Refuse columns that are one to the session."""
    require_different(names)
    if spark.conf.get(CASE_SENSITIVE) != "true":
        require_different_but_for_case(names)


def is_csv(path: Location) -> bool:
    """Return whether a path is that of a CSV file, packed or not."""
    return KINDS.get(suffix_of(path)) == "csv"


def csv_in_memory(path: Location, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Return the rows of a small CSV file, with the encoding and separator that its first bytes show.

    Args:
        path: The file.
        types: Types of some columns. Texts are never missing.

    Raises:
        ArrowInvalid: A value does not fit its column.
        TableError: The file is damaged, has no header, is not text in its encoding, or has a cell whose quotes do not
            end.
    """
    place = StoragePath.of(path)
    try:
        form = csv_form(place)
        require_sound(place, form)
    except (CsvError, PackedFileError) as error:
        raise TableError(str(error)) from error
    return pyarrow.csv.read_csv(
        place.local,
        read_options=pyarrow.csv.ReadOptions(encoding="utf8" if form.encoding.startswith("utf-8") else form.encoding),
        parse_options=pyarrow.csv.ParseOptions(delimiter=form.separator, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    )


def as_arrow(table: Any, columns: Sequence[str], what: str) -> pa.Table:
    """Return some columns of a Spark, pandas or Polars DataFrame or of a PyArrow table, in this process's memory.

    Args:
        table: The table.
        columns: Names of columns.
        what: Name of the table in a message.

    Raises:
        TableError: It is not a table, or lacks a column.
    """
    in_memory = None if hasattr(table, "sparkSession") else in_arrow(table)
    names = table.columns if in_memory is None else in_memory.column_names
    missing = [name for name in columns if name not in names]
    if missing:
        raise TableError(lacking(what, missing, names))
    return collected(table.select(*map(quoted, columns))) if in_memory is None else in_memory.select(list(columns))


def in_memory(table: Any) -> MemorySource:
    """Return a table in memory as this process converts it.

    Raises:
        TableError: See :func:`in_arrow`; or two columns have the same name, or names that differ in case alone.
    """
    arrow = in_arrow(table)
    require_different(arrow.column_names)
    require_different_but_for_case(arrow.column_names)
    return MemorySource.of(arrow)


def _stored(spark: SparkSession, name: Location, encoding: str | None, separator: str | None) -> DataFrame:
    """Return a table of the catalog, a lake table, or one of plain files."""
    if isinstance(name, str) and not is_path(name):
        if (table := _of_catalog(spark, name)) is not None:
            return table
        if not Path(name).exists():
            quote = (
                "" if _PLAIN_NAME.fullmatch(name) else "; put a part of a table's name with other signs in backticks"
            )
            raise TableError(f"there is no table or view '{name}', and no file or folder of that name{quote}")
    return read_stored(spark, [name], encoding=encoding, separator=separator)


def _of_catalog(spark: SparkSession, name: str) -> DataFrame | None:
    """Return a table of the catalog; None if there is none of that name.

    Raises:
        TableError: It cannot be read, most often for want of a privilege.
    """
    try:
        if not spark.catalog.tableExists(name):
            return None
        table = spark.table(name)
    except PySparkException as error:
        if error.getSqlState() == _FORBIDDEN:
            raise _unreadable(name, error) from error
        if isinstance(error, AnalysisException):  # no catalog of that name, or no name of a table
            return None
        raise
    try:
        _ = table.schema  # over Spark Connect a table is looked up here
    except AnalysisException as error:
        raise _unreadable(name, error) from error
    return table


def _unreadable(name: str, error: PySparkException) -> TableError:
    is_forbidden = error.getSqlState() == _FORBIDDEN
    ask = "; ask for USE CATALOG, USE SCHEMA and SELECT on it" if is_forbidden else ""
    return TableError(f"table '{name}' cannot be read: {task_message(error).rstrip('.')}{ask}")

"""Tables in any of the forms that users have, as Spark DataFrames."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines import held_columns
from mirrorspark.data_pipelines.csv_tables import CsvError, csv_form
from mirrorspark.data_pipelines.features import CATEGORIES, quoted
from mirrorspark.data_pipelines.sources import MemorySource
from mirrorspark.data_pipelines.stored_tables import KINDS, is_path, read_stored, suffix_of
from mirrorspark.data_pipelines.stored_tables import TableError as TableError
from mirrorspark.spark_session import on_running_session, require_running
from mirrorspark.storage import Location, StoragePath

# The key of a table in memory that has none: the position of the row.
ROW_NUMBER = "row_number"


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
    if is_frame:
        df = table
    elif isinstance(table, Location):
        df = _stored(spark, table, encoding, separator)
    elif isinstance(table, list | tuple) and table and all(isinstance(one, Location) for one in table):
        df = read_stored(spark, table, encoding=encoding, separator=separator)
    else:
        arrow = in_arrow(table)
        _require_different(arrow.column_names)
        df = spark.createDataFrame(arrow)
        for field in arrow.schema:
            if noted := categories_of(field):
                df = df.withMetadata(field.name, {name: json.loads(order) for name, order in noted.items()})
    if spark.conf.get("spark.sql.caseSensitive") != "true":
        _require_different(df.columns)
        _require_different_but_for_case(df.columns)
    return df


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
        TableError: The file has no header, or is not text.
    """
    place = StoragePath.of(path)
    try:
        form = csv_form(place)
    except CsvError as error:
        raise TableError(str(error)) from error
    return pyarrow.csv.read_csv(
        place.local,
        read_options=pyarrow.csv.ReadOptions(encoding="utf8" if form.encoding.startswith("utf-8") else form.encoding),
        parse_options=pyarrow.csv.ParseOptions(delimiter=form.separator, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    )


def _require_different(names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise TableError(f"the table has several columns of one name: {repeated}; rename or drop all but one")


def _require_different_but_for_case(names: Sequence[str]) -> None:
    counts = Counter(map(str.lower, names))
    twins = [name for name in names if counts[name.lower()] > 1]
    if twins:
        raise TableError(f"the columns {twins} differ in case alone, which Spark ignores; rename all but one")


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
        raise TableError(f"{what} lacks the columns {missing}; it has {list(names)}")
    return table.select(*map(quoted, columns)).toArrow() if in_memory is None else in_memory.select(list(columns))


def in_memory(table: Any) -> MemorySource:
    """Return a table in memory as this process converts it.

    Raises:
        TableError: See :func:`in_arrow`; or two columns have the same name, or names that differ in case alone.
    """
    arrow = in_arrow(table)
    _require_different(arrow.column_names)
    _require_different_but_for_case(arrow.column_names)
    return MemorySource.of(arrow)


def is_in_memory(table: Any) -> bool:
    """Return True for a pandas, Polars or PyArrow table, whose rows have an order."""
    return not hasattr(table, "sparkSession") and not isinstance(table, Location | list | tuple)


def numbered(table: Any) -> pa.Table:
    """Return a table in memory with the column ``row_number``, the position of the row from 0.

    Raises:
        TableError: It already has such a column, or is not a table.
    """
    arrow = in_arrow(table)
    if ROW_NUMBER in arrow.column_names:
        raise TableError(f"the table has a column '{ROW_NUMBER}' already; give it as the key, or rename it")
    return arrow.append_column(ROW_NUMBER, pa.array(range(arrow.num_rows), pa.int64()))


def in_arrow(table: Any, needed: Collection[str] = ()) -> pa.Table:
    """Return a table in memory with types that Spark takes.

    A column of another type, such as a time of day, is left out with a warning.

    Args:
        table: The table.
        needed: Columns that may not be left out.

    Raises:
        TableError: It is not a table, its columns have no names that can be told apart, or no column can be held, or
            not one that is needed.
    """
    reasons: dict[str, str] = {}
    if isinstance(table, pa.Table):
        arrow = table
    elif type(table).__module__.startswith("polars"):
        arrow, reasons = held_columns.of_polars(getattr(table, "collect", lambda: table)())
    elif type(table).__module__.startswith("pandas") and hasattr(table, "columns"):
        _require_texts(table.columns)
        arrow, reasons = held_columns.of_pandas(table)
    else:
        raise TableError(
            f"a {type(table).__name__} is not a table; give a Spark, pandas or Polars DataFrame, a PyArrow table, the "
            f"name of a table, or the path of Parquet, CSV or JSON files"
        )
    orders = {field.name: _order(arrow, field) for field in arrow.schema if pa.types.is_dictionary(field.type)}
    if type(table).__module__.startswith("polars"):
        orders |= {name: _order_of_enum(kind) for name, kind in table.collect_schema().items() if _is_enum(kind)}
    notes = {
        field.name: {CATEGORIES: json.dumps(orders[field.name])} if field.name in orders else categories_of(field)
        for field in arrow.schema
    }
    held, others = held_columns.held(arrow, notes)
    reasons |= others
    if reasons and not held.num_columns:
        raise TableError(
            f"no column of the table can be used: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}; "
            f"make them text or numbers, for example df[column].astype(str)"
        )
    if name := next((name for name in needed if name in reasons), None):
        raise TableError(f"column '{name}' cannot be used: {reasons[name]}; make it text or numbers")
    held_columns.warn_of(reasons)
    return held


def _order(arrow: pa.Table, field: pa.Field) -> list[str]:
    """Return the values of an ordered dictionary as text, the lowest first; an empty list if it has no order."""
    chunks, kind = arrow.column(field.name).chunks, field.type.value_type
    has_tokens = pa.types.is_integer(kind) or held_columns.held_type(kind) == pa.string()
    if not (field.type.ordered and chunks and has_tokens):
        return []
    return [value for value in chunks[0].dictionary.cast(pa.string()).to_pylist() if value]


def _is_enum(kind: Any) -> bool:
    return type(kind).__name__ == "Enum"


def _order_of_enum(kind: Any) -> list[str]:
    return [value for value in kind.categories.to_list() if value]


def categories_of(field: pa.Field) -> dict[str, str]:
    """Return the note of :func:`in_arrow` on a column of categories: its order as JSON, by the name of the note."""
    noted = (field.metadata or {}).get(CATEGORIES.encode())
    return {} if noted is None else {CATEGORIES: noted.decode()}


def _require_texts(names: Sequence[Any]) -> None:
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise TableError(f"column names {odd[:5]} are not strings; rename them: df.columns = df.columns.astype(str)")
    _require_different(list(names))


def _stored(spark: SparkSession, name: Location, encoding: str | None, separator: str | None) -> DataFrame:
    """Return a table of the catalog, a lake table, or one of plain files."""
    if isinstance(name, str) and not is_path(name):
        try:
            is_table = spark.catalog.tableExists(name)
        except AnalysisException:  # no catalog of that name, or no name of a table
            is_table = False
        if is_table:
            return spark.table(name)
        if not Path(name).exists():
            raise TableError(f"there is no table or view '{name}', and no file or folder of that name")
    return read_stored(spark, [name], encoding=encoding, separator=separator)

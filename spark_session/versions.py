"""The differences between the supported versions of PySpark, by capability.

Other modules call these functions and never ask for the version. An ability that an older PySpark lacks is refused.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyspark
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql import types as types_of_spark
from pyspark.sql.pandas import functions, types
from pyspark.sql.types import DataType, StructType

from mirrorspark.spark_session.session import MissingCapabilityError

HAS_ARROW_UDFS = hasattr(functions, "arrow_udf")
"""False before PySpark 4.1."""

HAS_PYTHON_SOURCES = find_spec("pyspark.sql.datasource") is not None
"""False before PySpark 4.0."""

OLDEST_JAVA = 17 if HAS_PYTHON_SOURCES else 8
"""The oldest Java that Spark takes: platforms have Spark 3.5 on Java 8 and 11."""

Unit = Literal["MICROSECOND", "DAY"]

# From PySpark 4.0 on: Arrow tables to DataFrames and back, and JSON of a DataFrame without its RDD.
_HAS_ARROW_TABLES = hasattr(DataFrame, "toArrow")

_ROWS = 10_000
_INTERVALS: dict[str, str] = {"MICROSECOND": "INTERVAL '0.000001' SECOND", "DAY": "INTERVAL '1' DAY"}

_HAS_ZONE = "timezone" in inspect.signature(types.to_arrow_schema).parameters
_IN_UTC: dict[str, Any] = {"timezone": "UTC"} if _HAS_ZONE else {}  # in UTC unasked before PySpark 4.2

if TYPE_CHECKING:
    from pyspark.sql import datasource

    StreamWriter = datasource.DataSourceStreamArrowWriter
elif HAS_PYTHON_SOURCES:
    from pyspark.sql import datasource

    # PySpark 4.0 hands rows to the writer of a stream, which passes them through arrow_batches.
    StreamWriter = getattr(datasource, "DataSourceStreamArrowWriter", datasource.DataSourceStreamWriter)


def to_arrow_schema(schema: StructType) -> pa.Schema:
    """Return the Arrow schema of a Spark schema, with moments in UTC.

    Raises:
        PySparkException: A column has a type that Arrow has not.
    """
    return types.to_arrow_schema(schema, **_IN_UTC)


def from_arrow_schema(schema: pa.Schema, *, prefer_timestamp_ntz: bool = True) -> StructType:
    """Return the Spark schema of an Arrow schema.

    Args:
        schema: The Arrow schema.
        prefer_timestamp_ntz: Read timestamps without a zone as wall-clock times, not as moments.

    Raises:
        PySparkException: A column has a type that Spark has not.
    """
    plain = pa.schema([one.with_type(_of_plain_lists(one.type)) for one in schema], schema.metadata)
    return types.from_arrow_schema(plain, prefer_timestamp_ntz)


def _of_plain_lists(kind: pa.DataType) -> pa.DataType:
    """Return a type without large lists, which Polars has and PySpark 3.5 does not know."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_of_plain_lists(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([one.with_type(_of_plain_lists(one.type)) for one in kind])
    return kind


def arrow_udf(body: Any, results: StructType) -> Any:
    """Return a UDF whose ``body`` maps an iterator of Arrow arrays to one of arrays.

    Raises:
        MissingCapabilityError: PySpark is older than 4.1.
    """
    if not HAS_ARROW_UDFS:
        _refuse(
            "UDFs on Arrow arrays, such as a model's function in SQL",
            "use mirrorspark.score, or Spark 4.1 or later",
        )
    # The stub has no overload for an iterator function that is recognised by its type hints.
    return functions.arrow_udf(body, returnType=results)  # type: ignore[call-overload]


def arrow_batches(given: Iterable[pa.RecordBatch | Row], schema: StructType) -> Iterator[pa.RecordBatch]:
    """Yield the batches that a task's :class:`StreamWriter` gets; rows are put together to batches."""
    rows = iter(given)
    while some := list(islice(rows, _ROWS if StreamWriter is datasource.DataSourceStreamWriter else 1)):
        if isinstance(some[0], pa.RecordBatch):
            yield from some
        else:
            from pyspark.sql.conversion import LocalDataToArrowConversion  # as of 4.0

            yield from LocalDataToArrowConversion.convert(some, schema, use_large_var_types=False).to_batches()


def require_python_sources() -> None:
    """Refuse PySpark 3.5, which has no data sources in Python.

    Raises:
        MissingCapabilityError: PySpark is older than 4.0.
    """
    if not HAS_PYTHON_SOURCES:
        _refuse(
            "formats in Python, such as tfrecord",
            "use mirrorspark.write_tfrecords and mirrorspark.read_tfrecords, or Spark 4.0 or later",
        )


def require_connect() -> None:
    """Refuse Spark Connect of PySpark 3.5, whose sessions and tables have classes apart from the classic ones.

    Raises:
        MissingCapabilityError: PySpark is older than 4.0.
    """
    if not HAS_PYTHON_SOURCES:
        _refuse(
            "Spark Connect that we can use",
            "use a classic session (a cluster of one's own, dedicated compute), or Spark 4.0 or later",
        )


def _refuse(capability: str, remedy: str) -> NoReturn:
    raise MissingCapabilityError(f"PySpark {pyspark.__version__}", capability, remedy)


def arrow_table(df: DataFrame) -> pa.Table:
    """Return the rows of a DataFrame in this process's memory."""
    if _HAS_ARROW_TABLES:
        return df.toArrow()
    rows: Any = df
    batches, schema = rows._collect_as_arrow(), to_arrow_schema(df.schema)
    # The batches have moments in the zone of the session.
    return pa.Table.from_batches(batches).cast(schema) if batches else schema.empty_table()


def table_of(spark: SparkSession, rows: pa.Table) -> DataFrame:
    """Return a DataFrame of rows in this process's memory."""
    if _HAS_ARROW_TABLES:
        return spark.createDataFrame(rows)
    from pyspark.sql.pandas.serializers import ArrowStreamSerializer

    zone = spark.conf.get("spark.sql.session.timeZone")
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz is None:
            rows = rows.set_column(place, field.name, pc.assume_timezone(rows.column(place), zone))
    schema = from_arrow_schema(rows.schema)
    # PySpark 3.5 sends a table of pandas to its JVM like this.
    jvm: Any = spark._jvm
    batches = rows.cast(to_arrow_schema(schema)).combine_chunks().to_batches(max_chunksize=_ROWS)
    sent = spark.sparkContext._serialize_to_jvm(
        batches, ArrowStreamSerializer(), jvm.PythonSQLUtils.readArrowStreamFromFile, jvm.ArrowIteratorServer
    )
    made = jvm.PythonSQLUtils.toDataFrame(sent, schema.json(), spark._jsparkSession)
    return DataFrame(made, spark)


def merged_groups(parts: DataFrame, by: Sequence[str], merge: Callable[[pa.Table], pa.Table]) -> DataFrame:
    """Return the rows that ``merge`` makes of those of each group, in the same columns."""
    groups, schema = parts.groupBy(*by), parts.schema
    if hasattr(groups, "applyInArrow"):
        return groups.applyInArrow(merge, schema)
    sent = to_arrow_schema(schema)

    def by_pandas(rows: Any) -> Any:
        return merge(pa.Table.from_pandas(rows, sent, preserve_index=False)).to_pandas()

    return groups.applyInPandas(by_pandas, schema)


def type_of_ddl(text: str) -> DataType:
    """Return the type, or the columns, that a text names in the language of SQL."""
    if hasattr(DataType, "fromDDL"):
        return DataType.fromDDL(text)
    return types_of_spark._parse_datatype_string(text)


def json_columns(texts: DataFrame) -> StructType:
    """Return the columns that Spark infers for JSON objects, one in each row of a column of texts."""
    if _HAS_ARROW_TABLES:
        return texts.sparkSession.read.json(texts).schema
    return texts.sparkSession.read.json(texts.rdd.map(_only_value)).schema


def _only_value(row: Row) -> Any:
    return row[0]


def condition_of(error: PySparkException) -> str | None:
    """Return the name of an error's condition, such as ``PATH_NOT_FOUND``."""
    return error.getCondition() if hasattr(error, "getCondition") else error.getErrorClass()


def try_cast(column: Column, kind: DataType | str) -> Column:
    """Return the values as another type; null where one is none."""
    if hasattr(Column, "try_cast"):
        return column.try_cast(kind)
    # In PySpark 3.5 it is a word of SQL alone, which takes no column.
    from pyspark import SparkContext

    jvm: Any = SparkContext._active_spark_context._jvm  # type: ignore[union-attr]
    expressions = jvm.org.apache.spark.sql.catalyst.expressions
    target = jvm.org.apache.spark.sql.types.DataType.fromDDL(kind if isinstance(kind, str) else kind.simpleString())
    of_jvm: Any = column
    cast = expressions.Cast(of_jvm._jc.expr(), target, jvm.scala.Option.empty(), expressions.EvalMode.TRY())
    return type(column)(jvm.org.apache.spark.sql.Column(cast))


def timestamp_add(unit: Unit, quantity: Column, time: Column) -> Column:
    """Return wall-clock times that are later by a number of units."""
    if hasattr(F, "timestamp_add"):
        return F.timestamp_add(unit, quantity, time)
    return time + F.expr(_INTERVALS[unit]) * quantity


def microseconds_between(start: Column, end: Column) -> Column:
    """Return the microseconds from one wall-clock time to another."""
    if hasattr(F, "timestamp_diff"):
        return F.timestamp_diff("MICROSECOND", start, end)
    return ((end - start).cast("interval second").cast("decimal(38,6)") * 1_000_000).cast("bigint")


def is_valid_utf8(column: Column) -> Column:
    """Return whether the bytes of a text are UTF-8."""
    if hasattr(F, "is_valid_utf8"):
        return F.is_valid_utf8(column)
    return column == F.decode(column.cast("binary"), "UTF-8")


def cancel_group(context: Any, group: str) -> None:
    """Cancel the jobs of a group and, from Spark 4.0 on, those that join it later."""
    jobs = context._jsc.sc()
    # A private call: PySpark's own leaves out a job that is about to be submitted.
    (jobs.cancelJobGroupAndFutureJobs if HAS_PYTHON_SOURCES else jobs.cancelJobGroup)(group)


def make_active(spark: SparkSession) -> None:
    """Make a classic session the active one of this thread, as PySpark does in the thread that starts it."""
    jvm: Any = spark._jvm
    has_kinds = hasattr(SparkSession, "_get_j_spark_session_class")
    of_jvm = SparkSession._get_j_spark_session_class(jvm) if has_kinds else jvm.SparkSession
    of_jvm.setActiveSession(spark._jsparkSession)


def hide_query_errors() -> None:
    """Keep PySpark from printing each error of a query, a line of JSON with Java's stack: it is raised, too."""
    if find_spec("pyspark.logger") is None:
        return
    from pyspark.logger import PySparkLogger

    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL)

"""The differences between the supported versions of PySpark, by capability.

Other modules call these functions and never ask for the version. An ability that an older PySpark lacks is refused.
"""

import inspect
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyspark
from pyspark.sql import Row, datasource
from pyspark.sql.pandas import functions, types
from pyspark.sql.types import StructType

from mirrorspark.spark_session.session import MissingCapabilityError

HAS_ARROW_UDFS = hasattr(functions, "arrow_udf")
"""False with PySpark 4.0."""

_ROWS = 10_000

_HAS_ZONE = "timezone" in inspect.signature(types.to_arrow_schema).parameters
_IN_UTC: dict[str, Any] = {"timezone": "UTC"} if _HAS_ZONE else {}  # in UTC unasked before PySpark 4.2

if TYPE_CHECKING:
    StreamWriter = datasource.DataSourceStreamArrowWriter
else:
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
    return types.from_arrow_schema(schema, prefer_timestamp_ntz)


def arrow_udf(body: Any, results: StructType) -> Any:
    """Return a UDF whose ``body`` maps an iterator of Arrow arrays to one of arrays.

    Raises:
        MissingCapabilityError: PySpark is older than 4.1.
    """
    if not HAS_ARROW_UDFS:
        raise MissingCapabilityError(
            f"PySpark {pyspark.__version__}",
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

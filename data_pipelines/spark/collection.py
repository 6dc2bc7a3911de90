"""Collection of a DataFrame as an Arrow table."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import DataType, StructField, StructType, UserDefinedType

from mirrorspark.data_pipelines.spark.tasks import map_batches
from mirrorspark.spark_session import versions


def collected(df: DataFrame) -> pa.Table:
    """Return the rows of ``df`` in this process's memory; ML vectors are the structs that Spark has for them."""
    fields = df.schema.fields
    if not any(isinstance(field.dataType, UserDefinedType) for field in fields):
        return versions.arrow_table(df)
    # `toArrow` fails for a missing vector: it declares that the vector's parts are never null.
    plain = StructType([StructField(field.name, _nullable(field.dataType), nullable=True) for field in fields])
    return versions.arrow_table(map_batches(df, _unchanged, plain))


def _unchanged(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from batches


def _nullable(data_type: DataType) -> DataType:
    if isinstance(data_type, UserDefinedType):
        return _nullable(data_type.sqlType())
    if isinstance(data_type, StructType):
        return StructType([StructField(field.name, _nullable(field.dataType), nullable=True) for field in data_type])
    return data_type

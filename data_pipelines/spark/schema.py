"""Conversion between Spark SQL and Arrow schemas, for the types that TFRecord files can hold."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    ByteType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    NullType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
    UserDefinedType,
)

from mirrorspark.data_pipelines.tfrecord import arrow_schema

# Spark's name for the one field of a list; its Arrow reader compares names too.
_ELEMENT = "element"
_SIMPLE: tuple[tuple[type[DataType], pa.DataType], ...] = (
    (BooleanType, pa.bool_()),
    (ByteType, pa.int8()),
    (ShortType, pa.int16()),
    (IntegerType, pa.int32()),
    (LongType, pa.int64()),
    (FloatType, pa.float32()),
    (DoubleType, pa.float64()),
    (StringType, pa.string()),
    (BinaryType, pa.binary()),
    (DateType, pa.date32()),
    # Spark passes timestamps in the session's zone, and the tasks convert them to UTC: the moment is the same.
    (TimestampType, pa.timestamp("us", tz="UTC")),
    (TimestampNTZType, pa.timestamp("us")),
    (NullType, pa.null()),
)


def arrow_schema_of(schema: StructType) -> pa.Schema:
    """Return the Arrow schema in which Spark sends and accepts the columns of ``schema``.

    Raises:
        SchemaError: A column has a type that TFRecord files cannot hold, for example a map or a struct.
    """
    return pa.schema(
        [pa.field(field.name, _arrow_type(field.dataType, field.name), field.nullable) for field in schema.fields]
    )


def sent_schema_of(schema: StructType) -> pa.Schema:
    """Return the Arrow schema in which Spark sends the columns of ``schema``, including maps of simple types.

    Raises:
        SchemaError: A column has a type that neither a TFRecord file nor a feature can hold.
    """
    return pa.schema([pa.field(field.name, _sent_type(field.dataType, field.name)) for field in schema.fields])


def _sent_type(data_type: DataType, column: str) -> pa.DataType:
    if isinstance(data_type, MapType):
        return pa.map_(_arrow_type(data_type.keyType, column), _arrow_type(data_type.valueType, column))
    return _arrow_type(data_type, column)


def spark_schema_of(schema: pa.Schema) -> StructType:
    """Return the Spark schema of inferred columns; all are nullable, because a feature may be missing.

    A column with only empty lists becomes an array of strings.

    Raises:
        SchemaError: A column has a type that Spark does not know.
    """
    return StructType([StructField(field.name, _spark_type(field.type, field.name), True) for field in schema])


def _arrow_type(data_type: DataType, column: str) -> pa.DataType:
    if isinstance(data_type, ArrayType):
        element = _arrow_type(data_type.elementType, column)
        return pa.list_(pa.field(_ELEMENT, element, data_type.containsNull))
    if isinstance(data_type, DecimalType):
        return pa.decimal128(data_type.precision, data_type.scale)
    if isinstance(data_type, UserDefinedType):
        return _struct_type(data_type.sqlType(), column)
    for spark_type, arrow_type in _SIMPLE:
        if isinstance(data_type, spark_type):
            return arrow_type
    raise arrow_schema.SchemaError(
        f"column '{column}' has type {data_type.simpleString()}, which a TFRecord file cannot hold; turn it into "
        f"numbers, strings, binaries or arrays of these, or drop it"
    )


def _struct_type(data_type: DataType, column: str) -> pa.DataType:
    """Return the struct of a user-defined type, for example of an ML vector."""
    if not isinstance(data_type, StructType):
        return _arrow_type(data_type, column)
    return pa.struct(
        [pa.field(field.name, _arrow_type(field.dataType, column), field.nullable) for field in data_type.fields]
    )


def _spark_type(arrow_type: pa.DataType, column: str) -> DataType:
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        return ArrayType(
            StringType() if pa.types.is_null(arrow_type.value_type) else _spark_type(arrow_type.value_type, column)
        )
    if pa.types.is_null(arrow_type):
        return ArrayType(StringType())
    if pa.types.is_struct(arrow_type):
        fields = [arrow_type.field(place) for place in range(arrow_type.num_fields)]
        return StructType([StructField(field.name, _spark_type(field.type, column), True) for field in fields])
    if pa.types.is_decimal(arrow_type):
        return DecimalType(arrow_type.precision, arrow_type.scale)
    for spark_type, known in _SIMPLE:
        if arrow_type == known:
            return spark_type()
    raise arrow_schema.SchemaError(f"column '{column}' has type {arrow_type}, which Spark does not know; cast it")


def with_plain_names(table: DataFrame) -> DataFrame:
    """Return a table with columns c0, c1, …: ``mapInArrow`` looks columns up by name.

    It fails for names with a dot or a back-quote, and for two names that differ only in case.
    """
    return table.toDF(*(f"c{number}" for number in range(len(table.columns))))


def with_notes(table: DataFrame, notes: Mapping[str, Mapping[str, Any]]) -> DataFrame:
    """Return a table whose columns, which may have any name, have metadata; ``withMetadata`` takes plain names only.

    Args:
        table: The table.
        notes: The metadata of each column, or none.
    """
    if not any(notes.values()):
        return table
    columns = {name: F.col(f"`{name.replace('`', '``')}`") for name in table.columns}
    return table.select(
        *[
            column.alias(name, metadata=dict(notes[name])) if notes.get(name) else column
            for name, column in columns.items()
        ]
    )

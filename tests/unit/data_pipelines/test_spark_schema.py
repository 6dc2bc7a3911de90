"""Spark's types and Arrow's stand for each other as Spark itself maps them (T1, S17)."""

import pyarrow as pa
import pytest
from pyspark.ml.linalg import VectorUDT
from pyspark.sql.pandas.types import to_arrow_type
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
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from mirrorspark.data_pipelines.spark.schema import arrow_schema_of, spark_schema_of
from mirrorspark.data_pipelines.tfrecord.arrow_schema import SchemaError, is_vector_type

SIMPLE: list[DataType] = [
    BooleanType(),
    ByteType(),
    ShortType(),
    IntegerType(),
    LongType(),
    FloatType(),
    DoubleType(),
    DecimalType(12, 3),
    StringType(),
    BinaryType(),
    DateType(),
    TimestampNTZType(),
]
NESTED: list[DataType] = [ArrayType(LongType()), ArrayType(ArrayType(StringType(), containsNull=False))]


@pytest.mark.parametrize("data_type", [*SIMPLE, *NESTED, VectorUDT()], ids=str)
def test_arrow_types_are_those_of_spark(data_type: DataType) -> None:
    schema = arrow_schema_of(StructType([StructField("a", data_type, nullable=False)]))

    assert schema.equals(pa.schema([pa.field("a", to_arrow_type(data_type), nullable=False)]))


def test_timestamps_are_in_utc_whatever_the_session_says() -> None:
    assert arrow_schema_of(StructType().add("t", TimestampType())).field("t").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize("data_type", [*SIMPLE, *NESTED[:1], TimestampType()], ids=str)
def test_types_come_back(data_type: DataType) -> None:
    schema = StructType().add("a", data_type)

    assert spark_schema_of(arrow_schema_of(schema)) == schema


def test_a_vector_is_known_as_one() -> None:
    assert is_vector_type(arrow_schema_of(StructType().add("v", VectorUDT())).field("v").type)


def test_a_feature_without_values_becomes_an_array() -> None:
    assert spark_schema_of(pa.schema([("a", pa.null())])) == StructType().add("a", ArrayType(StringType()))


@pytest.mark.parametrize("data_type", [MapType(StringType(), LongType()), StructType().add("x", LongType())], ids=str)
def test_types_that_no_record_holds_are_refused_by_column(data_type: DataType) -> None:
    with pytest.raises(SchemaError, match=r"column 'a' has type .*, which a TFRecord file cannot hold"):
        arrow_schema_of(StructType().add("a", data_type))

"""S18: a model is checked against the types that tasks will get, and Spark is asked for them once."""

import pyarrow as pa
import pytest
from pyspark.sql.types import DoubleType, LongType, MapType, StringType, StructField, StructType

from data_pipelines.raw_columns import ColumnError
from scoring.sent_columns import SentColumns

COLUMNS = SentColumns.of(
    StructType(
        [
            StructField("id", LongType()),
            StructField("dotted.name", DoubleType()),
            StructField("basket", MapType(LongType(), DoubleType())),
            StructField("who", StructType([StructField("name", StringType())])),
        ]
    )
)


def test_columns_are_those_that_tasks_get() -> None:
    """A column that no model can take does no harm until one reads it."""
    assert COLUMNS.names == ("id", "dotted.name", "basket", "who")
    expected = pa.schema({"basket": pa.map_(pa.int64(), pa.float64()), "dotted.name": pa.float64()})
    assert COLUMNS.schema(["basket", "dotted.name"]) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("who", r"column 'who' has type struct<name:string>, which no model can take; cast it"),
        ("dotted.Name", r"\(did you mean 'dotted.name'\? Upper and lower case count\)"),
        ("day", r"column 'day' is missing; the table has \['id', 'dotted.name', 'basket', 'who'\]"),
    ],
)
def test_a_column_that_no_model_can_take_is_named(name: str, message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        COLUMNS.schema(["id", name])

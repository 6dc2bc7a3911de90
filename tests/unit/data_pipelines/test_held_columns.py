"""Columns of tables in memory in the types that Spark has, and those that it cannot hold."""

import datetime
import logging
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.memory_tables import CATEGORIES, TableError, in_arrow

X = [1.0, 2.0, 3.0, 4.0]
NOT_HELD = {
    "interval": pd.arrays.IntervalArray.from_breaks(range(5)),
    "period": pd.period_range("2024-01", periods=4, freq="D"),
    "time of day": [datetime.time(hour) for hour in range(4)],
    "wide whole number": [2**70 + number for number in range(4)],
    "wide decimal": [Decimal("1." + "1" * 50)] * 4,
    "half of a character": ["\ud800"] * 4,
    "several types": [1, "a", None, 2.5],
    "complex": [1j] * 4,
    "UUID": [uuid.UUID(int=number) for number in range(4)],
    "object": [object() for _ in range(4)],
    "days and moments": [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 5), None, None],
    "far future": np.array(["400000-01-01"] * 4, dtype="datetime64[s]"),
}


@pytest.mark.parametrize("kind", NOT_HELD)
def test_a_column_that_spark_cannot_hold_is_left_out_and_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"x": X}).assign(z=NOT_HELD[kind])
    with caplog.at_level(logging.WARNING):
        assert in_arrow(table).column_names == ["x"]
    (record,) = caplog.records
    assert record.getMessage().startswith("column z: left out: ")
    assert record.getMessage().endswith("; to keep it, make it text, for example by astype(str)")
    if kind != "half of a character":  # which no text in UTF-8 can hold
        assert in_arrow(table.astype({"z": str})).column_names == ["x", "z"]


def test_columns_of_pandas_that_spark_lacks_become_what_they_stand_for() -> None:
    table = pd.DataFrame(
        {
            "cut": pd.cut(pd.Series(X), [0, 2, 9]),
            "mixed": pd.Categorical([1, "a", 1, "a"]),
            "sparse": pd.arrays.SparseArray([0, 0, 7, 0]),
            "moment": pd.to_datetime(["2024-01-01"] * 4).as_unit("ns"),
            "day": [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 2), None, None],
            "nothing": np.full(4, np.nan),
        }
    )
    found = in_arrow(table)
    assert found["cut"].to_pylist() == ["(0, 2]", "(0, 2]", "(2, 9]", "(2, 9]"]
    assert found.schema.field("cut").metadata[CATEGORIES.encode()] == b'["(0, 2]", "(2, 9]"]'
    assert found["mixed"].to_pylist() == ["1", "a", "1", "a"]
    assert found["sparse"].to_pylist() == [0, 0, 7, 0]
    assert found.schema.field("moment").type == pa.timestamp("us")
    assert found["day"].to_pylist()[:2] == [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)]
    assert found.schema.field("nothing").type == pa.null()
    assert isinstance(table["cut"].dtype, pd.CategoricalDtype)  # the caller's table stays as it is


WIDE = {
    "fit": ([1, -(2**63), None], ["x", "z"]),
    "do not fit": ([1, 2**70, None], ["x"]),
}


@pytest.mark.parametrize("kind", WIDE)
def test_whole_numbers_of_128_bits_in_polars_are_read_if_they_fit(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    values, kept = WIDE[kind]
    table = pl.DataFrame({"x": X[:3], "z": pl.Series(values, dtype=pl.Int128)})
    with caplog.at_level(logging.WARNING):
        found = in_arrow(table)
    assert found.column_names == kept
    if "z" in kept:
        assert found.schema.field("z").type == pa.int64()
        assert found["z"].to_pylist() == values
        assert not caplog.messages
    else:
        advice = "column z: left out: it has whole numbers of more than 64 bits; to keep it, make it text, for example "
        assert caplog.messages == [f"{advice}by cast(pl.String)"]
        assert in_arrow(table.with_columns(pl.col("z").cast(pl.String)))["z"].to_pylist() == ["1", str(2**70), None]


def test_columns_of_polars_and_arrow_that_spark_cannot_hold_are_left_out() -> None:
    wide, objects = pl.Series([1, 2**70], dtype=pl.Int128), pl.Series([object(), object()], dtype=pl.Object)
    frame = pl.DataFrame({"x": [1.0, 2.0], "wide": wide, "objects": objects, "time": [datetime.time(1)] * 2})
    assert in_arrow(frame).column_names == in_arrow(frame.lazy()).column_names == ["x"]
    table = pa.table(
        {
            "day": pa.array([0], pa.date64()),
            "times": pa.array([[datetime.time(1)]]),
            "far": pa.array([[4 * 10**13]], pa.list_(pa.timestamp("s"))),
            "wide": pa.array([Decimal(1)], pa.decimal256(50, 0)),
            "narrow": pa.array([Decimal(1)], pa.decimal256(20, 0)),
            "view": pa.array(["a"], pa.string_view()),
        }
    )
    types = dict(zip(in_arrow(table).column_names, in_arrow(table).schema.types, strict=True))
    assert types == {"day": pa.date32(), "narrow": pa.decimal128(20, 0), "view": pa.string()}


def test_rows_without_columns_are_no_table() -> None:
    """#52: ``pandas.read_json`` makes them of objects that are empty."""
    with pytest.raises(
        TableError, match=r"the table has 2 rows without columns, as of JSON objects that are empty; give"
    ):
        in_arrow(pd.DataFrame([{}, {}]))
    with pytest.raises(TableError, match=r"the table has no columns; give one whose rows have values with names"):
        in_arrow(pa.table({}))

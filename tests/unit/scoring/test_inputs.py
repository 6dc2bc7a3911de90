"""Columns that a model takes as they are: their types, and what becomes of null in them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.input.inputs import Column, ColumnInputs, Matrix, RowErrors


def read(column: Column, values: Any, type_: pa.DataType | None = None) -> np.ndarray:
    return column.read(pa.table({column.name: pa.array(values, type_)}))


def row_errors(column: Column, values: Any, type_: pa.DataType | None = None, length: int | None = None) -> RowErrors:
    return column.examined(pa.table({column.name: pa.array(values, type_)}), length)[1]


@pytest.mark.parametrize("type_", ["float", "double"])
def test_a_number_that_is_missing_is_nan_or_refused_or_filled(type_: str) -> None:
    """Pain 18: a null policy per column. NaN is missing as null is."""
    values = [1.5, None, float("nan")]
    np.testing.assert_array_equal(read(Column("x", type_), values), [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(read(Column("x", type_, fill=-1), values), [1.5, -1.0, -1.0])
    with pytest.raises(ColumnError, match=r"column 'x' \(.*\) has null or NaN, which.*coalesce.*a fill"):
        read(Column("x", type_, nulls="fail"), values)
    assert list(row_errors(Column("x", type_, nulls="fail"), values)) == [1, 2]


@pytest.mark.parametrize(
    ("type_", "values", "fill"),
    [("bigint", [1, None], 0), ("int", [1, None], 0), ("boolean", [True, None], False), ("string", ["a", None], "")],
)
def test_other_columns_refuse_null_or_fill_it(type_: str, values: list[Any], fill: Any) -> None:
    assert read(Column("x", type_, fill=fill), values).tolist() == [values[0], fill]
    with pytest.raises(ColumnError, match=rf"column 'x' \({type_}\) has null, which"):
        read(Column("x", type_), values)


def test_a_text_that_is_missing_can_pass_as_none() -> None:
    assert read(Column("x", "string", nulls="pass"), ["a", None]).tolist() == ["a", None]


@pytest.mark.parametrize(
    ("type_", "given", "dtype"),
    [
        ("float", pa.int32(), np.float32),
        ("float", pa.decimal128(5, 2), np.float32),
        ("double", pa.float32(), np.float64),
        ("double", pa.bool_(), np.float64),
        ("bigint", pa.int8(), np.int64),
        ("int", pa.int64(), np.int32),
    ],
)
def test_narrower_and_wider_numbers_are_cast(type_: str, given: pa.DataType, dtype: Any) -> None:
    values = read(Column("x", type_), pa.array([1, 0], pa.int8()).cast(given))
    assert values.dtype == dtype
    assert values.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("type_", "values"),
    [("float", ["1.5"]), ("bigint", ["1"]), ("string", [7]), ("boolean", [1]), ("array<float>", [1.0]), ("int", [[1]])],
)
def test_a_column_of_another_type_is_refused_by_name(type_: str, values: list[Any]) -> None:
    with pytest.raises(ColumnError, match=rf"column 'x' has type .*, the model takes {type_}; cast it in the query"):
        read(Column("x", type_), values)


def test_whole_numbers_and_booleans_that_pandas_made_floats_are_what_they_were() -> None:
    assert read(Column("x", "bigint"), [1.0, 2.0]).tolist() == [1, 2]
    assert read(Column("x", "bigint", fill=7), [1.0, None, float("nan")]).tolist() == [1, 7, 7]
    assert read(Column("x", "boolean"), [1.0, 0.0]).tolist() == [True, False]
    assert read(Column("x", "array<bigint>"), [[1.0], [2.0]]).tolist() == [[1], [2]]
    for type_, value in (("bigint", 1.5), ("boolean", 2.0), ("bigint", 1e300)):
        with pytest.raises(
            ColumnError, match=r"column 'x' has type double and the value .*; the model was trained with"
        ):
            read(Column("x", type_), [value])


def test_a_number_too_large_for_its_type_is_a_fault_of_its_row() -> None:
    with pytest.raises(ColumnError, match=r"column 'x' has a value that is not of type int \(1099511627776\)"):
        read(Column("x", "int"), [2**40])
    assert list(row_errors(Column("x", "int"), [1, None, 2**40, -(2**31)])) == [1, 2]
    assert list(row_errors(Column("x", "bigint"), [2**63, 1], pa.uint64())) == [0]
    assert list(row_errors(Column("x", "array<int>"), [[1, 2], [3, 2**31]])) == [1]


def test_lists_of_one_length_become_rows() -> None:
    column = Column("x", "array<float>")
    assert read(column, [[1, 2], [3, None]], pa.list_(pa.int64())).tolist()[0] == [1, 2]
    assert read(column, [[1, 2]], pa.list_(pa.float64(), 2)).tolist() == [[1, 2]]
    assert read(Column("x", "array<float>", fill=9), [[1.0, None]]).tolist() == [[1, 9]]
    assert read(column, [], pa.list_(pa.float32())).shape == (0, 0)
    with pytest.raises(ColumnError, match=r"has 1 elements, where 2 are wanted, .*make them equally long"):
        read(column, [[1.0, 2.0], [3.0]])
    with pytest.raises(ColumnError, match=r"has null, .*its length is unknown"):
        read(column, [[1.0, 2.0], None])


def test_lists_of_another_length_than_most_are_faults_of_their_rows_unless_the_model_says_a_length() -> None:
    column, values = Column("x", "array<float>"), [[1.0], [2.0, 3.0], None, [4.0, 5.0], []]
    assert list(row_errors(column, values)) == [0, 2, 4]
    assert list(row_errors(column, values, length=1)) == [1, 2, 3, 4]
    assert list(row_errors(column, [[1.0], [2.0, 3.0]])) == [1]  # of as many lengths, the first
    assert list(row_errors(Column("x", "array<float>", nulls="fail"), [[1.0, 2.0], [3.0], [4.0, None]])) == [1, 2]
    assert list(row_errors(column, [None, None])) == [0, 1]
    np.testing.assert_array_equal(read(column, [[1.0], [2.0]]), [[1.0], [2.0]])


def test_bytes_are_read_as_they_are() -> None:
    assert read(Column("x", "binary", nulls="pass"), [b"a\xff", None]).tolist() == [b"a\xff", None]
    assert read(Column("x", "binary"), [b"ab"], pa.large_binary()).tolist() == [b"ab"]
    assert read(Column("x", "binary"), [b"ab"], pa.binary(2)).tolist() == [b"ab"]
    with pytest.raises(ColumnError, match="has type string, the model takes binary"):
        read(Column("x", "binary"), ["ab"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "decimal"}, "type 'decimal' is unknown"),
        ({"type": "bigint", "nulls": "pass"}, "bigint has no value for null"),
        ({"type": "bigint", "fill": 1.5}, "fill 1.5 is not of type bigint"),
        ({"type": "int", "fill": 2**31}, "fill 2147483648 is not of type int"),
        ({"type": "array<bigint>", "fill": 2**64}, "fill 18446744073709551616 is not of type bigint"),
        ({"type": "float", "fill": "none"}, "fill 'none' is not of type float"),
        ({"type": "string", "decode": "image"}, "a decoded column must be binary, not string; give it as binary"),
        ({"type": "binary", "decode": "image", "nulls": "pass"}, "a decoded column has no value for null"),
        ({"type": "binary", "decode": "image", "fill": "black"}, "fill 'black' is not of type number"),
        ({"type": "binary", "fill": b""}, "bytes have no fill"),
        ({"type": "array<binary>"}, "type 'array<binary>' is unknown"),
    ],
)
def test_a_column_that_cannot_be_says_why(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        Column("x", **values)


def test_a_check_of_the_schema_names_what_is_missing_or_of_another_type() -> None:
    inputs = ColumnInputs((Column("a", "bigint"), Column("b", "array<double>")))
    inputs.check(pa.schema({"a": pa.int32(), "b": pa.list_(pa.float32()), "c": pa.date32()}))
    with pytest.raises(ColumnError, match=r"column 'b' is missing; the table has \['a'\]"):
        inputs.check(pa.schema({"a": pa.int32()}))
    with pytest.raises(ColumnError, match="column 'a' has type string, the model takes bigint"):
        inputs.check(pa.schema({"a": pa.string(), "b": pa.list_(pa.float32())}))


def test_inputs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ColumnError, match=r"columns \['a'\] are given twice"):
        ColumnInputs((Column("a", "float"), Column("a", "double")))
    with pytest.raises(ColumnError, match=r"columns \['b'\] do not fit the model, which takes one array of float"):
        ColumnInputs((Column("a", "float"), Column("b", "string")), Matrix("features", "float"))

"""Columns become the arrays that a model of another library takes, call by call; errors name the rows at fault."""

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.backends.protocol import ArrayType, Signature
from mirrorspark.scoring.input import feed
from mirrorspark.scoring.input.decoding import Decoder
from mirrorspark.scoring.input.feed import ColumnFeed
from mirrorspark.scoring.input.inputs import Column, ColumnInputs, Matrix

FEATURES = Signature((ArrayType("features", "float", (None, 3)),), ())


def feed_of(*arrays: ArrayType) -> ColumnFeed:
    columns = tuple(Column(array.name, array.column_type) for array in arrays)
    return ColumnFeed(ColumnInputs(columns), Signature(arrays, ()), {})


def test_columns_are_gathered_into_one_array_in_their_order() -> None:
    table = pa.table({"b": [[3.0, 4.0]], "unused": ["x"], "a": [1]})
    inputs = ColumnInputs((Column("a", "float"), Column("b", "array<float>")), Matrix("features", "float"))
    ((rows, part),) = ColumnFeed(inputs, FEATURES, {}).parts(table, 10)
    assert rows == 1
    assert {name: (array.dtype, array.tolist()) for name, array in part.items()} == {
        "features": (np.float32, [[1.0, 3.0, 4.0]])
    }


def test_parts_cover_all_rows_and_an_empty_table_has_one() -> None:
    numbers = feed_of(ArrayType("a", "bigint"))
    table = pa.table({"a": range(5)})
    assert [(rows, part["a"].tolist()) for rows, part in numbers.parts(table, 2)] == [
        (2, [0, 1]),
        (2, [2, 3]),
        (1, [4]),
    ]
    assert [(rows, part["a"].tolist()) for rows, part in numbers.parts(table.slice(0, 0), 2)] == [(0, [])]


def test_the_list_among_columns_of_one_array_is_as_long_as_they_leave() -> None:
    """However many rows have another length."""
    inputs = ColumnInputs((Column("a", "float"), Column("b", "array<float>")), Matrix("features", "float"))
    batch = pa.record_batch({"a": [1.0, 2.0, 3.0], "b": [[1.0], [1.0, 2.0], [1.0]]})
    assert list(ColumnFeed(inputs, FEATURES, {}).row_errors(batch, first=False)) == [0, 2]


def test_lists_that_do_not_make_up_the_model_s_array_are_nobody_s_fault() -> None:
    """Either of two lists may have the wrong length."""
    inputs = ColumnInputs((Column("a", "array<float>"), Column("b", "array<float>")), Matrix("features", "float"))
    both = ColumnFeed(inputs, FEATURES, {})
    batch = pa.record_batch({"a": [[1.0]], "b": [[2.0]]})
    assert both.row_errors(batch, first=False) == {}
    with pytest.raises(ColumnError, match=r"columns \['a', 'b'\] have 2 values per row together, the model takes 3"):
        next(both.parts(batch, 10))


def test_rows_at_fault_are_found_in_all_columns_and_the_first_column_s_word_counts() -> None:
    texts = feed_of(ArrayType("a", "bigint"), ArrayType("b", "string"))
    batch = pa.record_batch({"a": pa.array([None, 1, 2, None]), "b": pa.array(["x", "y", None, None])})
    assert {row: message[:10] for row, message in texts.row_errors(batch, first=False).items()} == {
        0: "column 'a'",
        2: "column 'b'",
        3: "column 'a'",
    }


def test_a_column_of_a_wrong_type_is_no_row_s_fault() -> None:
    with pytest.raises(ColumnError, match="column 'a' has type string, the model takes bigint"):
        feed_of(ArrayType("a", "bigint")).row_errors(pa.record_batch({"a": ["x"]}), first=False)


def test_decoded_arrays_come_in_calls_of_bounded_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: of arrays of 16 bytes each, 64 bytes are four rows; the errors are those of all calls."""
    monkeypatch.setattr(feed, "CALL_BYTES", 64)
    column = Column("x", "binary", decode="two")
    decoder = Decoder("two", lambda value: np.frombuffer(value, np.float64), (2,), np.dtype(np.float64))
    array = ArrayType("array", "double", (None, 2))
    bounded = ColumnFeed(ColumnInputs((column,), Matrix("array", "double")), Signature((array,), ()), {"x": decoder})
    assert (bounded.rows_per_call(8192), bounded.rows_per_call(3)) == (4, 3)
    values = [np.array([row, -row], np.float64).tobytes() for row in range(10)]
    parts = list(bounded.parts(pa.table({"x": values}), bounded.rows_per_call(8192)))
    assert [(rows, len(part["array"])) for rows, part in parts] == [(4, 4), (4, 4), (2, 2)]
    assert np.concatenate([part["array"] for _, part in parts])[:, 1].tolist() == [-float(row) for row in range(10)]
    values[2] = values[7] = values[9] = b"broken"
    assert list(bounded.row_errors(pa.record_batch({"x": values}), first=False)) == [2, 7, 9]

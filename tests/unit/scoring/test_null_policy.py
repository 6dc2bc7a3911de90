"""Pain 18: a value takes the place of a column's nulls, or none may be."""

import pyarrow as pa
import pytest

from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.null_policy import NullPolicy


def test_nulls_are_filled_or_refused_column_by_column() -> None:
    batch = pa.record_batch({"a": pa.array([1, None], pa.int32()), "b": pa.array([None, "x"]), "c": [None, 1.0]})
    policy = NullPolicy({"a": 7, "b": "none"})
    filled = policy.filled(batch)
    assert filled.to_pydict() == {"a": [1, 7], "b": ["none", "x"], "c": [None, 1.0]}
    assert filled.schema.field("a").type == pa.int32()
    strict = NullPolicy({"b": "fail", "c": "fail", "a": 7})
    assert strict.row_errors(batch) == {0: "column 'c' is null, which the null policy does not allow"}
    assert NullPolicy({"a": "fail", "b": "fail"}).row_errors(batch) == {
        0: "column 'b' is null, which the null policy does not allow",
        1: "column 'a' is null, which the null policy does not allow",
    }
    assert strict.row_errors(batch.slice(1)) == policy.row_errors(batch) == {}


def test_a_column_without_a_type_takes_that_of_what_fills_it() -> None:
    """One that a call of the UDF leaves out, or that is NULL in SQL."""
    batch = pa.record_batch({"a": pa.nulls(2), "b": pa.nulls(2), "c": pa.array([1, 2])})
    policy = NullPolicy({"a": 0.5, "b": "none", "c": 3})

    policy.check(batch.schema)
    filled = policy.filled(batch)

    assert filled.to_pydict() == {"a": [0.5, 0.5], "b": ["none", "none"], "c": [1, 2]}
    assert filled.schema.types == [pa.float64(), pa.string(), pa.int64()]


def test_a_policy_that_cannot_hold_is_refused() -> None:
    schema = pa.schema([("a", pa.int32()), ("l", pa.list_(pa.string()))])
    NullPolicy({"a": "fail", "l": "fail"}).check(schema)
    for values, message in (
        ({"x": 1}, r"names 'x', which the model does not read; it reads \['a', 'l'\]"),
        ({"a": "many"}, "'many' cannot take the place of a null in column 'a' of type int32"),
        ({"a": 2**64}, "18446744073709551616 cannot take the place of a null in column 'a'"),
        ({"a": 0.5}, "0.5 cannot take the place of a null in column 'a'"),
        ({"l": "x"}, "'x' cannot take the place of a null in column 'l'"),
    ):
        with pytest.raises(ScoringError, match=message):
            NullPolicy(values).check(schema)  # type: ignore[arg-type]

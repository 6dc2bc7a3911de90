"""Raw columns to model inputs: missing, unknown, unicode, over-long and wrong-typed values (F1)."""

import decimal
import math

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.features import UNBOUNDED, Categorical, Feature, FeatureSpec, Label, MultiValued, Numeric
from data_pipelines.fitted import FittedFeatures, NumericStatistics, Vocabulary
from data_pipelines.transform import ColumnError, Encoder, RaggedIds, raw_column

# UA = 2, AA = 3, "7" = 4, "日本" = 5, "true" = 6
TOKENS = ["UA", "AA", "7", "日本", "true"]


def encoder(*features: Feature, mean: float = 100.0, deviation: float = 50.0) -> Encoder:
    spec = FeatureSpec(features, Label("label"), ("id",))
    vocabulary = Vocabulary(pa.array(TOKENS, pa.string()), pa.array([1] * len(TOKENS), pa.int64()))
    vocabularies = {spec.vocabulary_name(feature): vocabulary for feature in spec.token_features}
    statistics = {feature.name: NumericStatistics(mean, deviation, 0, 0, 1) for feature in spec.numeric}
    return Encoder(FittedFeatures(spec, vocabularies, statistics))


def encode_one(feature: Feature, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return encoder(feature).encode_padded(pa.table({feature.name: column}))[feature.name]


def ids_of(column: pa.Array | pa.ChunkedArray) -> list[int]:
    ids = encode_one(Categorical("x"), column)
    assert ids.dtype == np.int64
    return ids.tolist()


def lists_of(column: pa.Array, *, max_length: int = 3, truncate: str = "head") -> list[list[int]]:
    ids = encode_one(MultiValued("x", max_length=max_length, truncate=truncate), column)
    assert ids.dtype == np.int64
    return ids.tolist()


def token_lists(rows: list[list[str | None] | None]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.string()))


def test_numbers_are_standardised_and_missing_ones_become_the_mean() -> None:
    values = encode_one(Numeric("x"), pa.array([0.0, 100.0, 150.0, None, math.nan]))
    assert values.dtype == np.float32
    assert values.tolist() == [-2.0, 0.0, 1.0, 0.0, 0.0]


def test_a_missing_number_becomes_the_number_of_the_spec() -> None:
    assert encode_one(Numeric("x", impute=200), pa.array([None, 50.0])).tolist() == [2.0, -1.0]
    assert encode_one(Numeric("x", impute=-1, standardise=False), pa.array([None, 50.0])).tolist() == [-1.0, 50.0]


def test_a_constant_column_becomes_zeros() -> None:
    constant = encoder(Numeric("x"), mean=7.0, deviation=0.0)
    assert constant.encode(pa.table({"x": [7.0, None]}))["x"].tolist() == [0.0, 0.0]


def test_numbers_are_rounded_once() -> None:
    # As float32 this value is 100 exactly, and its distance from the mean would be lost.
    assert encode_one(Numeric("x"), pa.array([100.0 + 1e-7]))[0] == pytest.approx(2e-9, rel=1e-6)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([0, None, 150], pa.int64()), [-2.0, 0.0, 1.0]),
        (pa.array([0, None, 150], pa.uint8()), [-2.0, 0.0, 1.0]),
        (pa.array([0, None, 150], pa.float32()), [-2.0, 0.0, 1.0]),
        (pa.array([decimal.Decimal("0.0"), None, decimal.Decimal("150.0")]), [-2.0, 0.0, 1.0]),
        (pa.array([False, None, True]), [-2.0, 0.0, np.float32(-1.98)]),
        (pa.nulls(2), [0.0, 0.0]),
    ],
    ids=["int64", "uint8", "float32", "decimal", "boolean", "only nulls"],
)
def test_every_type_of_number_is_read(column: pa.Array, expected: list[float]) -> None:
    assert encode_one(Numeric("x"), column).tolist() == pytest.approx(expected)


def test_whole_numbers_beyond_double_precision_are_rounded() -> None:
    assert encode_one(Numeric("x", standardise=False), pa.array([2**60 + 1], pa.int64())).tolist() == [2.0**60]


def test_missing_is_0_unknown_is_1_and_the_vocabulary_starts_at_2() -> None:
    column = pa.array(["UA", "AA", "日本", "ua", " UA", "", None], pa.string())
    assert ids_of(column) == [2, 3, 5, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([7, 8, None], pa.int32()), [4, 1, 0]),
        (pa.array([True, False, None]), [6, 1, 0]),
        (pa.array(["UA", None], pa.large_string()), [2, 0]),
        (pa.nulls(2), [0, 0]),
        (pa.array([], pa.string()), []),
    ],
    ids=["integers", "booleans", "large strings", "only nulls", "no rows"],
)
def test_tokens_of_other_types_are_read_as_text(column: pa.Array, expected: list[int]) -> None:
    assert ids_of(column) == expected


def test_slices_and_chunks_are_read_like_whole_columns() -> None:
    column = pa.array(["AA", "UA", None, "??"], pa.string())
    assert ids_of(column.slice(1)) == [2, 0, 1]
    assert ids_of(pa.chunked_array([column.slice(1, 2), column.slice(3), column.slice(0, 1)])) == [2, 0, 1, 3]
    assert ids_of(pa.chunked_array([], pa.string())) == []


def test_record_batches_are_read_like_tables() -> None:
    batch = pa.RecordBatch.from_pydict({"x": pa.array(["AA", None])}).slice(0, 1)
    assert encoder(Categorical("x")).encode(batch)["x"].tolist() == [3]


def test_lists_lose_missing_tokens_and_are_padded_on_the_right() -> None:
    column = token_lists([["UA"], [], None, ["AA", None, "", "??"], ["", None]])
    assert lists_of(column) == [[2, 0, 0], [0, 0, 0], [0, 0, 0], [3, 1, 0], [0, 0, 0]]


def test_an_over_long_list_loses_its_head_or_its_tail_after_its_missing_tokens() -> None:
    column = token_lists([["UA", "AA", "7", "日本"], ["UA", None, "AA", "", "7"], ["UA", "AA", "7"]])
    assert lists_of(column, truncate="head") == [[3, 4, 5], [2, 3, 4], [2, 3, 4]]
    assert lists_of(column, truncate="tail") == [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    assert lists_of(column, truncate="head", max_length=1) == [[5], [4], [4]]
    assert lists_of(column, truncate="tail", max_length=1) == [[2], [2], [2]]


def test_sliced_and_chunked_lists_are_read_like_whole_ones() -> None:
    column = token_lists([["AA"], None, ["UA", "7"], ["日本"], []])
    assert lists_of(column.slice(1, 3), max_length=2) == [[0, 0], [2, 4], [5, 0]]
    chunks = pa.chunked_array([column.slice(2, 1), column.slice(0, 2)])
    assert lists_of(chunks, max_length=2) == [[2, 4], [3, 0], [0, 0]]


def test_the_tokens_under_a_null_list_are_not_read() -> None:
    # Arrow may keep values where a row is null: here "AA" belongs to the null row.
    offsets, values = pa.array([0, 1, 2, 3], pa.int32()), pa.array(["UA", "AA", "7"])
    column = pa.ListArray.from_arrays(offsets, values, mask=pa.array([False, True, False]))
    assert lists_of(column, max_length=1) == [[2], [0], [4]]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([[7, 8], None], pa.list_(pa.int64())), [[4, 1], [0, 0]]),
        (pa.array([["UA"], None], pa.large_list(pa.large_string())), [[2, 0], [0, 0]]),
        (pa.array([[None], []], pa.list_(pa.null())), [[0, 0], [0, 0]]),
        (pa.nulls(2), [[0, 0], [0, 0]]),
        (pa.array([], pa.list_(pa.string())), []),
    ],
    ids=["integers", "large", "lists of nulls", "only nulls", "no rows"],
)
def test_lists_of_other_types_are_read_as_text(column: pa.Array, expected: list[list[int]]) -> None:
    assert lists_of(column, max_length=2) == expected


def test_a_list_without_bound_is_as_wide_as_its_longest_row() -> None:
    column = token_lists([["UA"], ["AA", "7", "日本"]])
    assert encode_one(MultiValued("x", max_length=UNBOUNDED), column).tolist() == [[2, 0, 0], [3, 4, 5]]
    assert encode_one(MultiValued("x", max_length=UNBOUNDED), token_lists([])).shape == (0, 0)


def test_lists_are_encoded_as_values_and_row_lengths() -> None:
    column = token_lists([["UA", "AA", "7", "日本"], None, ["??"]])
    ragged = encoder(MultiValued("x", max_length=2)).encode(pa.table({"x": column}))["x"]
    assert isinstance(ragged, RaggedIds)
    assert (ragged.values.tolist(), ragged.row_lengths.tolist()) == ([4, 5, 1], [2, 0, 1])


def test_only_the_asked_for_features_are_encoded() -> None:
    both = encoder(Numeric("n"), Categorical("c"))
    table = pa.table({"n": [100.0]})
    assert list(both.encode(table, (Numeric("n"),))) == ["n"]


def test_an_absent_column_is_named_with_the_columns_that_are_there() -> None:
    with pytest.raises(ColumnError, match=r"column 'x' \(numeric\) is missing; the table has \['y'\]"):
        raw_column(pa.table({"y": [1]}), Numeric("x"))


@pytest.mark.parametrize(
    ("feature", "column", "type_name"),
    [
        (Numeric("x"), pa.array(["1"]), "string"),
        (Numeric("x"), pa.array([[1.0]]), "list"),
        (Categorical("x"), pa.array([1.5]), "double"),
        (Categorical("x"), pa.array([["UA"]]), "list"),
        (Categorical("x"), pa.array([b"UA"]), "binary"),
        (MultiValued("x", max_length=2), pa.array(["UA"]), "string"),
        (MultiValued("x", max_length=2), pa.array([[1.5]]), "list<item: double>"),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else None,
)
def test_a_column_of_the_wrong_type_is_named_with_its_type(feature: Feature, column: pa.Array, type_name: str) -> None:
    with pytest.raises(ColumnError, match=f"column 'x' has type {type_name}.*{feature.kind} feature.*cast it or"):
        encode_one(feature, column)

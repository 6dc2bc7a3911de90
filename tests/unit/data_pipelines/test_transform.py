"""Raw columns to model inputs: missing, unknown, unicode, over-long and wrong-typed values (F1)."""

import decimal
import math
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.embedded_columns import IMAGE, embedded_column
from mirrorspark.data_pipelines.features.farmhash import fingerprint64
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import (
    UNBOUNDED,
    Bucketed,
    Categorical,
    Date,
    Feature,
    ImageEmbedding,
    Label,
    MultiValued,
    Numeric,
    Ordinal,
    Sequence,
    Sparse,
    Text,
    TextEmbedding,
    Vector,
)
from mirrorspark.data_pipelines.features.raw_columns import (
    RAW_TYPES,
    ColumnError,
    numeric_values,
    raw_column,
    raw_inputs,
)
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import (
    Encoder,
    RaggedIds,
    SparseRows,
    counted_tokens,
    measured_values,
    non_finite,
)
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary

# UA = 2, AA = 3, "7" = 4, "日本" = 5, "true" = 6
TOKENS = ["UA", "AA", "7", "日本", "true"]


def encoder(*features: Feature, mean: float = 100.0, deviation: float = 50.0) -> Encoder:
    spec = FeatureSpec(features, Label("label"), ("id",))
    vocabulary = Vocabulary(pa.array(TOKENS, pa.string()), pa.array([1] * len(TOKENS), pa.int64()))
    vocabularies = {spec.vocabulary_name(feature): vocabulary for feature in spec.token_features}
    statistics = {feature.name: NumericStatistics(mean, deviation, 0, 0, 1) for feature in spec.numeric}
    quantiles = {feature.name: (-1.0, 0.0, 2.5) for feature in spec.bucketed}
    return Encoder(FittedFeatures(spec, vocabularies, statistics, quantiles))


def encode_one(feature: Feature, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return encoder(feature).encode_padded(pa.table({feature.name: column}))[feature.name]


def ids_of(column: pa.Array | pa.ChunkedArray) -> list[int]:
    ids = encode_one(Categorical("x"), column)
    assert ids.dtype == np.int64
    return ids.tolist()


@pytest.mark.parametrize(
    "column",
    [
        *(pa.array([7, None, 5, 0], type_) for type_ in (pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64())),
        pa.array([2**63 + 1, 7, None, 5], pa.uint64()),
        pa.chunked_array([[7], [], [None, 5]], pa.int64()),
        pa.array([True, None, False]),
        pa.nulls(3),
    ],
    ids=lambda column: str(column.type),
)
def test_whatever_the_type_of_a_column_its_tokens_are_those_of_its_texts(column: pa.Array) -> None:
    """Integers are looked up without making text of them; the ids are those of the text."""
    spec = FeatureSpec((Categorical("x"),), Label("label"), ("id",))
    tokens = pa.array(["5", "true", "7", "9223372036854775809"])
    vocabulary = Vocabulary(tokens, pa.array([1] * len(tokens), pa.int64()))
    encoder = Encoder(FittedFeatures(spec, {"x": vocabulary}, {}))
    texts = column.cast(pa.string())
    ids, of_texts = (encoder.encode(pa.table({"x": one}))["x"].tolist() for one in (column, texts))
    assert ids == of_texts
    assert len(set(ids)) > 1 or pa.types.is_null(column.type)


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


@pytest.mark.parametrize(
    ("longest", "bucket"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (32, 32), (33, 50), (50, 50)]
)
def test_a_bucket_is_a_power_of_two_up_to_the_greatest_length(longest: int, bucket: int) -> None:
    """F14."""
    ids = RaggedIds(np.full(longest, 7), np.array([0, longest]))
    assert ids.bucket(50) == bucket
    assert ids.padded(bucket).tolist() == [[0] * bucket, [7] * longest + [0] * (bucket - longest)]


def test_no_rows_have_a_bucket_of_one() -> None:
    assert RaggedIds(np.empty(0, np.int64), np.empty(0, np.int64)).bucket(50) == 1


def test_lists_of_any_length_are_padded_part_by_part() -> None:
    """F14: to what the part's own rows need; those of a fixed length and those without a greatest one are as ever."""
    features = (MultiValued("x", max_length=6), MultiValued("y", max_length=6), MultiValued("z", max_length=UNBOUNDED))
    lists = token_lists([["UA"], [], ["UA", "AA", "7"], ["AA"] * 9, None])
    table = pa.table({"x": lists, "y": lists, "z": lists})
    parts = [part for _, part in encoder(*features).padded_parts(table, features, 2, {"x", "z"})]
    assert {name: [part[name].shape for part in parts] for name in ("x", "y", "z")} == {
        "x": [(2, 1), (2, 6), (1, 1)],
        "y": [(2, 6), (2, 6), (1, 6)],
        "z": [(2, 1), (2, 9), (1, 0)],
    }
    assert [part["x"].tolist() for part in parts] == [[[2], [0]], [[2, 3, 4, 0, 0, 0], [3] * 6], [[0]]]


def test_one_very_long_list_does_not_make_all_others_as_long() -> None:
    """S8: 8 bytes an id: a part with the list of 100 has one row, others as they may."""
    features = (MultiValued("x", max_length=UNBOUNDED), MultiValued("y", max_length=4))
    lists = token_lists([["UA"]] * 5 + [["AA"] * 100] + [["UA"] * 2] * 6 + [[]])
    table = pa.table({"x": lists, "y": lists})

    def parts(unbounded_bytes: int | None) -> list[tuple[int, dict[str, np.ndarray]]]:
        return list(encoder(*features).padded_parts(table, features, 4, unbounded_bytes=unbounded_bytes))

    free, bounded = parts(None), parts(64)
    assert [rows for rows, _ in free] == [4, 4, 4, 1]
    assert [part["x"].shape for _, part in free] == [(4, 1), (4, 100), (4, 2), (1, 0)]
    assert [rows for rows, _ in bounded] == [4, 1, 1, 4, 3]
    assert [part["x"].shape for _, part in bounded] == [(4, 1), (1, 1), (1, 100), (4, 2), (3, 2)]
    for name in ("x", "y"):
        rows_of = [[row[row > 0].tolist() for _, part in found for row in part[name]] for found in (free, bounded)]
        assert rows_of[0] == rows_of[1]
    assert [
        rows for rows, _ in encoder(*features).padded_parts(table.slice(0, 0), features, 4, unbounded_bytes=64)
    ] == [0]


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
    with pytest.raises(ColumnError, match=rf"column 'x' has type {type_name}.*{feature.kind} feature.*cast it \(or"):
        encode_one(feature, column)


def test_a_number_is_imputed_in_its_own_units() -> None:
    """The spec's number goes through clip and logarithm like any value of the column."""
    feature = Numeric("x", impute=1000, clip=(0, 99), log=True, standardise=False)
    missing, present = encode_one(feature, pa.array([None, 99.0]))
    assert missing == present == np.float32(math.log(100))


def test_the_mean_is_one_of_clipped_logarithms_already() -> None:
    feature = Numeric("x", clip=(0, 99), log=True)
    assert encode_one(feature, pa.array([None])).tolist() == [0.0]
    assert measured_values(feature, pa.array([-1.0, None, 1e9])).tolist() == pytest.approx(
        [0.0, math.nan, math.log(100)], nan_ok=True
    )


def test_numbers_too_large_for_float32_are_infinite() -> None:
    assert encode_one(Numeric("x", standardise=False), pa.array([1e300, -math.inf])).tolist() == [math.inf, -math.inf]


def test_infinite_values_are_counted_in_every_form() -> None:
    """1e300 is finite in the table and not in float32; an infinite value less the mean is infinite too."""
    number = encode_one(Numeric("distance"), pa.array([1.0, None, math.inf, -math.inf, 1e300, math.nan]))
    assert non_finite(number) == 3
    assert (
        non_finite(
            sparse_rows(pa.array([[(1, math.inf)], None, [(2, 1.0), (3, -1e39)]], pa.map_(pa.int32(), pa.float64())))
        )
        == 2
    )
    ids = encoder(MultiValued("stops", max_length=3)).encode(pa.table({"stops": [["a"], []]}))["stops"]
    assert non_finite(ids) == 0


def test_a_number_falls_into_the_bucket_that_begins_at_it() -> None:
    column = pa.array([-math.inf, -1.1, -1.0, -0.0, 0.0, 2.4, 2.5, math.inf, None, math.nan])
    ids = encode_one(Bucketed("x", buckets=4), column)
    assert (ids.dtype, ids.tolist()) == (np.int64, [2, 2, 3, 4, 4, 4, 5, 5, 0, 0])
    assert encode_one(Bucketed("x", buckets=4), pa.array([True, False])).tolist() == [4, 4]


def test_hashed_tokens_have_the_id_that_tensorflow_s_hash_gives() -> None:
    tokens = ["", "UA", "日本", "x" * 100]
    ids = encode_one(Categorical("x", hash_buckets=1000), pa.array([*tokens, None]))
    # tf.strings.to_hash_bucket_fast(["UA", "日本", "x" * 100], 1000) is [219, 883, 719].
    assert ids.tolist() == [0, 221, 885, 721, 0]


def test_a_list_shares_the_hash_of_a_categorical_feature() -> None:
    both = encoder(Categorical("x", hash_buckets=1000), MultiValued("l", max_length=2, vocabulary_of="x"))
    encoded = both.encode_padded(pa.table({"x": ["UA"], "l": [["日本", "UA"]]}))
    assert (encoded["x"].tolist(), encoded["l"].tolist()) == ([221], [[885, 221]])


def sequence_ids(tokens: pa.Array, times: pa.Array, max_length: int = 3) -> list[list[int]]:
    feature = Sequence("x", time="t", max_length=max_length)
    return encoder(feature).encode_padded(pa.table({"x": tokens, "t": times}))["x"].tolist()


def test_a_sequence_keeps_its_most_recent_tokens_in_time_order() -> None:
    tokens = token_lists([["UA", "AA", "7", "日本"], ["UA", "", "AA", None], None, []])
    times = pa.array([[4, 1, 3, 2], [2, 9, 1, 9], None, []], pa.list_(pa.int64()))
    assert sequence_ids(tokens, times) == [[5, 4, 2], [3, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert sequence_ids(tokens, times, max_length=1) == [[2], [2], [0], [0]]


def test_tokens_of_equal_time_keep_their_order_and_those_without_a_time_are_the_oldest() -> None:
    tokens = token_lists([["UA", "AA", "7"], ["UA", "AA", "7"]])
    times = pa.array([[1, 1, 1], [-5, None, -9]], pa.list_(pa.int64()))
    assert sequence_ids(tokens, times) == [[2, 3, 4], [3, 4, 2]]


@pytest.mark.parametrize(
    "kind", [pa.int32(), pa.date32(), pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.null()], ids=str
)
def test_times_are_timestamps_dates_or_whole_numbers(kind: pa.DataType) -> None:
    times = pa.array([[None, None]] if pa.types.is_null(kind) else [[2, 1]], pa.list_(kind))
    expected = [[2, 3, 0]] if pa.types.is_null(kind) else [[3, 2, 0]]
    assert sequence_ids(token_lists([["UA", "AA"]]), times) == expected


def test_a_sequence_whose_times_are_fewer_is_refused() -> None:
    tokens, times = token_lists([["UA"], ["UA", "AA"]]), pa.array([[1], [1]])
    message = r"columns 'x' and 't' of sequence feature 'x' have lists of 2 and 1 elements in one row; they belong"
    with pytest.raises(ColumnError, match=message):
        sequence_ids(tokens, times)
    with pytest.raises(ColumnError, match=r"column 't' has type list<.*double>, which a sequence feature cannot take"):
        sequence_ids(tokens, pa.array([[1.0], [1.0, 2.0]]))


def text_ids(*texts: str | None, **options: object) -> list[list[int]]:
    feature = Text("x", **{"max_length": 3} | options)  # type: ignore[arg-type]
    return encode_one(feature, pa.array(texts, pa.string())).tolist()


def test_a_text_is_normalised_and_split() -> None:
    # The vocabulary's "UA" and "AA" have capitals, which no normalised token has.
    assert text_ids("TRUE-7?", "\uff17 \u65e5\u672c", "ua", "?!", "", None) == [
        [6, 4, 0],
        [4, 5, 0],
        [1, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert text_ids("7 x 7 true", truncate="head") == [[1, 4, 6]]
    assert text_ids("7 x 7 true") == [[4, 1, 4]]
    assert text_ids("7,true 7", pattern=",") == [[4, 1, 0]]


def test_a_text_gives_its_words_and_their_ngrams() -> None:
    def ids(*tokens: str) -> list[int]:
        return (fingerprint64(pa.array(tokens)) % np.uint64(1_000_000)).astype(np.int64).tolist()

    options = {"max_length": 9, "hash_buckets": 1_000_000, "ngrams": (3, 4)}
    of_ice, of_ab = ("<ice>", "<ice", "ice>", "<ic", "ice", "ce>"), ("<ab>", "<ab", "ab>")
    found = text_ids("Ice, ab", "ab ice", "?", None, "\u65e5", **options)
    assert [[value - 2 for value in row if value] for row in found] == [
        ids(*of_ice, *of_ab),
        ids(*of_ab, *of_ice),
        [],
        [],
        ids("<\u65e5>"),
    ]
    # The limit counts both, from the side that is kept.
    assert text_ids("ice ab", **options | {"max_length": 2}) == [[value + 2 for value in ids("<ice>", "<ice")]]
    assert text_ids("ice ab", **options | {"max_length": 2, "truncate": "head"}) == [
        [value + 2 for value in ids("<ab", "ab>")]
    ]


def sparse_rows(column: pa.Array, size: int = 10) -> SparseRows:
    rows = encoder(Sparse("x", size=size)).encode(pa.table({"x": column}))["x"]
    assert isinstance(rows, SparseRows)
    assert (rows.indices.dtype, rows.values.dtype, rows.row_lengths.dtype) == (np.int64, np.float32, np.int64)
    return rows


def dense(rows: SparseRows, size: int = 10) -> list[list[float]]:
    matrix = np.zeros((len(rows.row_lengths), size))
    for row, (start, stop) in enumerate(zip(rows.row_starts[:-1], rows.row_starts[1:], strict=True)):
        np.add.at(matrix[row], rows.indices[start:stop], rows.values[start:stop])
    return matrix.tolist()


def test_a_map_is_a_sparse_vector_by_rising_index() -> None:
    column = pa.array(
        [[(7, 0.5), (2, 1.5)], None, [], [(1, None), (3, math.nan), (0, -1.0)]], pa.map_(pa.int16(), pa.float32())
    )
    rows = sparse_rows(column)
    assert (rows.indices.tolist(), rows.values.tolist()) == ([2, 7, 0], [1.5, 0.5, -1.0])
    assert (rows.row_lengths.tolist(), rows.row_starts.tolist()) == ([2, 0, 0, 1], [0, 2, 2, 2, 3])
    sliced = sparse_rows(column.slice(2))
    assert (sliced.indices.tolist(), sliced.row_lengths.tolist()) == ([0], [0, 1])


SPARK_VECTOR = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)


def test_spark_s_vectors_are_read_sparse_or_dense() -> None:
    column = pa.array(
        [
            {"type": 0, "size": 4, "indices": [1, 3], "values": [1.0, 2.0]},
            None,
            {"type": 1, "size": None, "indices": None, "values": [0.0, 5.0, 0.0, 6.0]},
            {"type": 0, "size": 4, "indices": [], "values": []},
        ],
        SPARK_VECTOR,
    )
    assert dense(sparse_rows(column, size=4), size=4) == [[0, 1, 0, 2], [0] * 4, [0, 5, 0, 6], [0] * 4]
    assert dense(sparse_rows(column.slice(2), size=4), size=4) == [[0, 5, 0, 6], [0] * 4]
    with pytest.raises(ColumnError, match="column 'x' holds a vector of size 4, the spec says 5; correct one of them"):
        sparse_rows(column, size=5)


def test_two_arrays_are_a_sparse_vector_and_repeated_indices_stay() -> None:
    feature = Sparse("x", size=10, indices="i", values="v")
    table = pa.table({"i": [[4, 4, 1], [], [None, 2]], "v": pa.array([[1.0, 2.0, 3.0], [], [9.0, 8.0]])})
    rows = encoder(feature).encode(table)["x"]
    assert isinstance(rows, SparseRows)
    assert (rows.indices.tolist(), rows.values.tolist()) == ([1, 4, 4, 2], [3.0, 1.0, 2.0, 8.0])
    with pytest.raises(ColumnError, match="columns 'i' and 'v' of sparse feature 'x' have lists of 2 and 1 elements"):
        encoder(feature).encode(pa.table({"i": [[1, 2]], "v": [[1.0]]}))


def test_a_vector_that_was_taken_apart_is_read_again() -> None:
    """The encoder takes the same columns as the raw signature of an exported model."""
    column = pa.array([[(7, 0.5), (2, 1.5)], None], pa.map_(pa.int16(), pa.float32()))
    apart = raw_inputs(pa.table({"x": column}), encoder(Sparse("x", size=10)).fitted.spec)
    assert apart.column_names == ["x_indices", "x_values"]
    rows = encoder(Sparse("x", size=10)).encode(apart)["x"]
    assert isinstance(rows, SparseRows)
    assert (rows.indices.tolist(), rows.values.tolist(), rows.row_lengths.tolist()) == ([2, 7], [1.5, 0.5], [2, 0])


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_of_a_sparse_vector_is_refused(index: int) -> None:
    with pytest.raises(
        ColumnError, match=f"sparse feature 'x' has the index {index}; its size is 10: use indices from"
    ):
        sparse_rows(pa.array([[(index, 1.0)]], pa.map_(pa.int32(), pa.float64())))


def test_sparse_rows_equal_scipy_s() -> None:
    """Rows with repeats, gaps and empty ones are the compressed sparse rows that SciPy makes of them (S3, F9)."""
    from scipy.sparse import coo_array

    rng = np.random.default_rng(5)
    lengths = rng.integers(0, 6, 200)
    lengths[rng.random(200) < 0.2] = 0
    indices, values = rng.integers(0, 300_000, lengths.sum()), rng.integers(1, 9, lengths.sum()).astype(np.float64)
    indices[::7] = 17
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    table = pa.table({"i": pa.ListArray.from_arrays(offsets, indices), "v": pa.ListArray.from_arrays(offsets, values)})
    rows = encoder(Sparse("x", size=300_000, indices="i", values="v")).encode(table)["x"]
    assert isinstance(rows, SparseRows)
    row_numbers = np.repeat(np.arange(200), lengths)
    expected = coo_array((values, (row_numbers, indices)), shape=(200, 300_000)).tocsr()
    found = coo_array((rows.values, (np.repeat(np.arange(200), rows.row_lengths), rows.indices)), shape=expected.shape)
    assert (found.tocsr() != expected).nnz == 0
    assert all(
        (np.diff(rows.indices[start:stop]) >= 0).all()
        for start, stop in zip(rows.row_starts[:-1], rows.row_starts[1:], strict=True)
    )


def test_vocabularies_count_neither_null_nor_nothing() -> None:
    def counted(feature: Feature, **columns: pa.Array) -> list[str]:
        return counted_tokens(feature, raw_column(pa.table(columns), feature)).to_pylist()  # type: ignore[arg-type]

    assert counted(Categorical("x"), x=pa.array(["a", "", None, "a"])) == ["a", "a"]
    assert counted(Categorical("x"), x=pa.array([7, None])) == ["7"]
    assert counted(MultiValued("x", max_length=1), x=token_lists([["a", "", "b"], None, [None]])) == ["a", "b"]
    assert counted(Sequence("x", time="t", max_length=1), x=token_lists([["a", "b"]]), t=pa.array([[2, 1]])) == [
        "b",
        "a",
    ]
    assert counted(Text("x", max_length=1), x=pa.array(["A b!", None, ""])) == ["a", "b"]


def test_the_raw_columns_of_a_model_are_the_spec_s_alone_in_their_types() -> None:
    """A spec is a list of what is allowed: other columns go no further (F16)."""
    features = (
        Numeric("n"),
        Categorical("c"),
        MultiValued("m", max_length=2),
        Sequence("s", time="t", max_length=2),
        Text("x", max_length=2),
        Sparse("v", size=4),
        Vector("p", size=2),
    )
    table = pa.table(
        {
            "n": [1],
            "c": [7],
            "m": [[True]],
            "s": [["a", "b"]],
            "t": pa.array([[2, None]], pa.list_(pa.timestamp("us"))),
            "x": ["text"],
            "v": pa.array([[(1, 0.5)]], pa.map_(pa.int32(), pa.float32())),
            "p": pa.array([[0.5, 2]], pa.list_(pa.float32(), 2)),
            "gender": ["not allowed"],
        }
    )
    raw = raw_inputs(table, FeatureSpec(features, Label("label"), ("id",)))
    forms = {name: form for feature in features for name, form in feature.raw.items()}
    assert raw.schema.equals(pa.schema([(name, RAW_TYPES[form]) for name, form in forms.items()]))
    assert raw.to_pylist() == [
        {
            "n": 1.0,
            "c": "7",
            "m": ["true"],
            "s": ["a", "b"],
            "t": [2, -(2**63)],
            "x": "text",
            "v_indices": [1],
            "v_values": [0.5],
            "p": [0.5, 2.0],
        }
    ]


@pytest.mark.parametrize(
    "type_", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2), pa.list_(pa.int32())]
)
def test_a_missing_vector_becomes_zeros(type_: pa.DataType) -> None:
    column = pa.array([[1, -2], None, [3, None]], type_)
    vectors = encoder(Vector("x", size=2)).encode(pa.table({"x": column.slice(0, 3)}))["x"]
    assert isinstance(vectors, np.ndarray)
    assert (vectors.dtype, vectors.tolist()) == (np.float32, [[1.0, -2.0], [0.0, 0.0], [3.0, 0.0]])


def test_an_empty_list_is_a_missing_vector() -> None:
    vectors = encoder(Vector("x", size=2)).encode(pa.table({"x": [[], [1.0, math.nan]]}))["x"]
    assert np.asarray(vectors).tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_an_embedded_text_becomes_its_vector_and_a_missing_one_zeros() -> None:
    feature = TextEmbedding("x", "encoder", size=2)
    texts = pa.array(["a film", None, "a b"])
    table = pa.table({"x": embedded_column(texts, np.array([[1, -2], [3, 1e-40]], np.float32))})
    for rows in (table, table.slice(0, 3).to_batches()[0]):
        vectors = np.asarray(encoder(feature).encode(rows)["x"])
        assert (vectors.dtype, vectors.tolist()) == (np.float32, [[1.0, -2.0], [0.0, 0.0], [3.0, 0.0]])
    assert raw_inputs(table, FeatureSpec((feature,), Label("label"), ("id",))).equals(table)


def test_an_embedded_image_becomes_its_vector_and_one_of_another_kind_is_refused() -> None:
    feature = ImageEmbedding("x", "encoder", size=2)
    table = pa.table({"x": embedded_column(pa.array(["a1", None]), np.array([[1, -2]], np.float32), IMAGE)})
    assert np.asarray(encoder(feature).encode(table)["x"]).tolist() == [[1.0, -2.0], [0.0, 0.0]]
    text = embedded_column(pa.array(["a"]), np.ones((1, 2), np.float32))
    longer = embedded_column(pa.array(["a"]), np.ones((1, 3), np.float32), IMAGE)
    for column, message in (
        (pa.array([b"an image"]), "column 'x' has images without vectors; score them with the model"),
        (pa.array(["a.png"]), "column 'x' has type string, which an image_embedding feature cannot take"),
        (text, "column 'x' has type struct<text: .*cannot take"),
        (longer, "column 'x' holds a vector of 3 numbers, the spec says 2"),
    ):
        with pytest.raises(ColumnError, match=message):
            encoder(feature).encode(pa.table({"x": column}))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a film"], "column 'x' has texts without vectors; score them with the model"),
        ([7], "column 'x' has type int64, which a text_embedding feature cannot take"),
        ([[1.0, 2.0]], "column 'x' has type list<.*>, which a text_embedding feature cannot take"),
        (
            embedded_column(pa.array(["a film"]), np.ones((1, 3), np.float32)),
            "column 'x' holds a vector of 3 numbers, the spec says 2",
        ),
    ],
)
def test_a_text_without_the_vector_of_its_encoder_is_refused(column: Any, message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        encoder(TextEmbedding("x", "encoder", size=2)).encode(pa.table({"x": column}))


def test_a_vector_of_another_length_is_refused_with_both_lengths() -> None:
    table = pa.table({"x": [[1.0, 2.0], None, [1.0, 2.0, 3.0]]})
    with pytest.raises(ColumnError, match="column 'x' holds a vector of 3 numbers, the spec says 2"):
        encoder(Vector("x", size=2)).encode(table)


@pytest.mark.parametrize(
    ("feature", "columns"),
    [
        (Numeric("x"), ["x"]),
        (Bucketed("x"), ["x"]),
        (Categorical("x", hash_buckets=5), ["x"]),
        (MultiValued("x", max_length=2), ["x"]),
        (Sequence("x", time="t", max_length=2), ["x", "t"]),
        (Text("x", max_length=2), ["x"]),
        (Sparse("x", size=3), ["x"]),
        (Sparse("x", size=3, indices="i", values="v"), ["i", "v"]),
        (Vector("x", size=3), ["x"]),
        (TextEmbedding("x", "encoder", size=3), ["x"]),
        (ImageEmbedding("x", "encoder", size=3), ["x"]),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "",
)
def test_columns_of_nothing_but_null_are_missing_in_every_row(feature: Feature, columns: list[str]) -> None:
    table = pa.table({name: pa.nulls(2) for name in columns})
    if isinstance(feature, Sparse):
        assert encoder(feature).encode_padded(table)["x_row_lengths"].tolist() == [0, 0]
    else:
        assert not encoder(feature).encode_padded(table)["x"].any()


@pytest.mark.parametrize(
    ("order", "days"),
    [
        # The last of January 2024 is day 19,753 since 1970.
        ("ymd", {"2024-01-31": 19_753, " 2024/1/31 ": 19_753, "2024-Jan-31": 19_753, "1969-12-31": -1}),
        ("ymd", {"2024-01-31T18:00:00": 19_753.75, "2024-01-31 00:30+01:00": 19_753 - 1 / 48, "2024-02-29": 19_782}),
        ("ymd", {"1970-01-01T00:00:00.864Z": 1e-5, "2024-01-31 12:00 -0600": 19_753.75, "31.1.2024": math.nan}),
        ("dmy", {"31.1.2024": 19_753, "31 January 2024": 19_753, "Wed, 31 Jan 2024 06:00:00 GMT": 19_753.25}),
        (
            "dmy",
            {
                "2024-01-31": 19_753,
                "1/31/2024": math.nan,
                "29.2.2023": math.nan,
                "30.2.2024": math.nan,
                "unknown": math.nan,
                "": math.nan,
            },
        ),
        ("mdy", {"1/31/2024": 19_753, "Jan 31, 2024": 19_753, "1/31/2024 6:00 PM": 19_753.75, "1.2.2024": math.nan}),
        ("mdy", {"1/31/2024 12:00 am": 19_753, "31/1/2024": math.nan}),
        ("time", {"06:00": 0.25, "6:00:00 pm": 0.75, "24:00": math.nan, "2024-01-31": math.nan}),
    ],
)
def test_texts_of_dates_become_days(order: Any, days: dict[str, float]) -> None:
    column = raw_column(pa.table({"x": [*days, None]}), Date("x", order=order))
    np.testing.assert_array_equal(numeric_values(column), [*days.values(), math.nan])


def test_dates_and_timestamps_become_the_days_of_their_text() -> None:
    zoned = pa.array([datetime(2024, 1, 31, 6)]).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("ns", "Asia/Tokyo"))
    for column, expected in (
        (pa.array([date(2024, 1, 31)]), 19_753),
        (pa.array([datetime(2024, 1, 31, 6)], pa.timestamp("ms")), 19_753.25),
        (zoned, 19_753.25),
        (pa.nulls(1), math.nan),
    ):
        days = raw_column(pa.table({"x": column}), Date("x", order="dmy"))
        np.testing.assert_array_equal(numeric_values(days), [expected])
    with pytest.raises(ColumnError, match="column 'x' has type int64, which a date feature cannot take"):
        raw_column(pa.table({"x": [19_753]}), Date("x"))


@pytest.mark.parametrize(
    ("column", "order", "ranks"),
    [
        (["S", "L", None, "", "XXL"], ("S", "M", "L"), [0, 2, math.nan, math.nan, math.nan]),
        ([3, 1, None, 7], ("3", "1", "2"), [0, 1, math.nan, math.nan]),
        ([True, False], ("false", "true"), [1, 0]),
    ],
)
def test_an_ordinal_feature_is_the_rank_of_its_value(column: list[Any], order: Any, ranks: list[float]) -> None:
    found = raw_column(pa.table({"x": column}), Ordinal("x", order=order))
    np.testing.assert_array_equal(numeric_values(found), ranks)

"""The block layout: rows to one record and back, what TensorFlow reads of it, and the values it refuses (T1)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.dataset.block_format import check_columns, decode_block, encode_blocks
from mirrorspark.data_pipelines.features.candidate_lists import one_candidate_per_row
from mirrorspark.data_pipelines.features.embedded_columns import embedded_column
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import (
    Bucketed,
    Categorical,
    Label,
    MultiValued,
    Numeric,
    Sequence,
    Sparse,
    Text,
    TextEmbedding,
    Vector,
)
from mirrorspark.data_pipelines.features.labels import LabelError
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder, RaggedIds, SparseRows
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.data_pipelines.reading.batching import LABEL, BatchColumns
from mirrorspark.data_pipelines.reading.queries import held_back_candidates

Tables = Callable[[int, int], pa.Table]


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_rows_come_back_as_they_were_encoded(flight_features: FittedFeatures, flight_table: Tables) -> None:
    table = flight_table(0, 6)
    (payload,), _ = encode_blocks(table, Encoder(flight_features), flight_features.spec)
    block = decode_block(payload, flight_features.spec, keys=True)
    assert block.rows == 6
    assert block.features["row"].tolist() == [0, 1, 2, 3, 4, 5]
    # Distances 0, 10, 20, missing, 40, 50 about a mean of 100 with spread 50.
    assert block.features["distance"] == pytest.approx([-2.0, -1.8, -1.6, 0.0, -1.2, -1.0])
    assert block.features["carrier"].tolist() == [2, 3, 4, 5, 1, 0]
    assert block.features["earlier"].tolist() == [[0, 0, 0], [2, 0, 0], [2, 3, 0], [2, 3, 4], [3, 4, 5], [0, 0, 0]]
    assert block.label is not None
    assert block.label.tolist() == [0, 1, 0, 1, 0, 1]
    assert block.weight.tolist() == [1, 2, 3, 1, 2, 3]
    assert block.keys["flight_id"].tolist() == [f"flight-{row}" for row in range(6)]
    assert block.keys["day"].tolist() == [0, 1, 2, 3, 4, 5]
    assert block.excluded is None
    types = {name: column.dtype for name, column in block.features.items()}
    assert types == {"row": np.float32, "distance": np.float32, "carrier": np.int64, "earlier": np.int64}
    assert (block.label.dtype, block.weight.dtype) == (np.float32, np.float32)


def test_training_reads_neither_keys_nor_exclusions(flight_features: FittedFeatures, flight_table: Tables) -> None:
    (payload,), _ = encode_blocks(flight_table(0, 2), Encoder(flight_features), flight_features.spec)
    assert decode_block(payload, flight_features.spec).keys == {}


def test_exclusions_are_ids_of_the_candidate_and_the_label_is_a_feature(rating_features: FittedFeatures) -> None:
    table = pa.table(
        {"row": [0, 1], "movie": ["Brazil", None], "user": [1, 2], "seen": [[], ["Casablanca", "??", "Alien"]]}
    )
    (payload,), _ = encode_blocks(table, Encoder(rating_features), rating_features.spec)
    block = decode_block(payload, rating_features.spec, keys=True)
    assert block.excluded is not None
    assert block.excluded.tolist() == [[0, 0, 0], [4, 1, 2]]
    assert block.features["movie"].tolist() == [3, 0]
    assert block.label is None
    assert block.weight.tolist() == [1.0, 1.0]


def test_a_list_of_candidates_is_stored_next_to_its_first_and_training_does_not_read_it(
    rating_features: FittedFeatures,
) -> None:
    """#55."""
    label = Label("movie", kind="candidate", lists=True)
    fitted = dataclasses.replace(rating_features, spec=dataclasses.replace(rating_features.spec, label=label))
    batch = pa.record_batch(
        {
            "row": [0, 1],
            "movie": [["Brazil", None, "??", "Brazil", "!!"], ["", "Alien"]],
            "user": [1, 2],
            "seen": [["Casablanca"], ["Brazil"]],
        }
    )
    (staged,) = one_candidate_per_row(batch, fitted.spec, is_training=False)
    (payload,), _ = encode_blocks(pa.Table.from_batches([staged]), Encoder(fitted), fitted.spec)
    block = decode_block(payload, fitted.spec, keys=True)
    assert block.features["movie"].tolist() == [3, 2]
    assert block.held_back is not None
    assert (block.held_back.values.tolist(), block.held_back.row_lengths.tolist()) == ([3, 1, 1, 2], [3, 1])
    assert decode_block(payload, fitted.spec).held_back is None
    # Each unknown one counts.
    assert held_back_candidates(block, fitted.spec).values.tolist() == [3, -3, -4, 2]


def test_the_rating_of_a_candidate_is_stored_as_the_label(rating_features: FittedFeatures) -> None:
    label = Label("movie", kind="candidate", rating="stars")
    fitted = dataclasses.replace(rating_features, spec=dataclasses.replace(rating_features.spec, label=label))
    table = pa.table(
        {"row": [0, 1], "movie": ["Brazil", "Alien"], "user": [5, 6], "seen": [["Alien"], []], "stars": [4.5, 2.0]}
    )
    (payload,), _ = encode_blocks(table, Encoder(fitted), fitted.spec)
    block = decode_block(payload, fitted.spec)
    assert isinstance(block.label, np.ndarray)
    assert block.label.tolist() == [4.5, 2.0]
    columns = BatchColumns.of(fitted)
    assert (LABEL in columns.floats, "label/stars" in columns.layout.floats) == (True, True)


def test_tensorflow_reads_a_block_by_the_names_that_the_layout_promises(
    flight_features: FittedFeatures, flight_table: Tables
) -> None:
    (payload,), _ = encode_blocks(flight_table(0, 6), Encoder(flight_features), flight_features.spec)
    columns = tf.io.parse_single_example(
        payload,
        {
            "carrier": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
            "distance": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
            "earlier": tf.io.RaggedFeature(
                tf.int64, partitions=[tf.io.RaggedFeature.RowLengths("earlier/row_lengths")]
            ),
            "label/late": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
            "weight/importance": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
            "key/flight_id": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
        },
    )
    assert columns["carrier"].numpy().tolist() == [2, 3, 4, 5, 1, 0]
    assert columns["distance"].numpy() == pytest.approx([-2.0, -1.8, -1.6, 0.0, -1.2, -1.0])
    assert columns["earlier"].to_list() == [[], [2], [2, 3], [2, 3, 4], [3, 4, 5], []]
    assert columns["label/late"].numpy().tolist() == [0, 1, 0, 1, 0, 1]
    assert columns["weight/importance"].numpy().tolist() == [1, 2, 3, 1, 2, 3]
    assert columns["key/flight_id"].numpy()[5] == b"flight-5"


def everything() -> tuple[FittedFeatures, pa.Table]:
    """Return a spec of every kind with two rows; a = 2, b = 3 in all vocabularies."""
    words = Vocabulary(pa.array(["a", "b"]), pa.array([2, 1]))
    spec = FeatureSpec(
        (
            Sparse("basket", size=9),
            Numeric("amount", standardise=False),
            Bucketed("age", buckets=2),
            Categorical("shop"),
            MultiValued("tags", max_length=2),
            Sequence("seen", time="seen_at", max_length=2),
            Text("review", max_length=2),
            Vector("picture", size=2),
            TextEmbedding("title", "encoders/titles", size=2),
        ),
        Label("topics", "multi_label"),
        ("id",),
    )
    vocabularies = dict.fromkeys(["shop", "tags", "seen", "review", "topics"], words)
    fitted = FittedFeatures(spec, vocabularies, {"amount": NumericStatistics(0, 1, 0, 0, 1)}, {"age": (30.0,)})
    table = pa.table(
        {
            "basket": pa.array([[(7, 0.5), (2, 1.0)], []], pa.map_(pa.int32(), pa.float64())),
            "amount": [1.5, 2.5],
            "age": [29, 30],
            "shop": ["b", "?"],
            "tags": [["a", "b", "a"], []],
            "seen": [["a", "b"], ["b"]],
            "seen_at": [[2, 1], [0]],
            "review": ["A, b", ""],
            "picture": [[0.5, -1.0], None],
            "title": embedded_column(pa.array([None, "A film"]), np.array([[0.25, 4.0]], np.float32)),
            "topics": pa.array([["b", "a"], []], pa.list_(pa.string())),
            "id": [1, 2],
        }
    )
    return fitted, table


def test_rows_of_every_kind_come_back_as_they_were_encoded() -> None:
    fitted, table = everything()
    (payload,), _ = encode_blocks(table, Encoder(fitted), fitted.spec)
    block = decode_block(payload, fitted.spec)
    basket = block.features["basket"]
    assert isinstance(basket, SparseRows)
    assert (basket.indices.tolist(), basket.values.tolist(), basket.row_lengths.tolist()) == (
        [2, 7],
        [1.0, 0.5],
        [2, 0],
    )
    assert {name: np.asarray(values).tolist() for name, values in block.features.items() if name != "basket"} == {
        "amount": [1.5, 2.5],
        "age": [2, 3],
        "shop": [3, 1],
        "tags": [[3, 2], [0, 0]],
        "seen": [[3, 2], [3, 0]],
        "review": [[2, 3], [0, 0]],
        "picture": [[0.5, -1.0], [0.0, 0.0]],
        "title": [[0.0, 0.0], [0.25, 4.0]],
    }
    assert isinstance(block.label, RaggedIds)
    assert block.label.multi_hot(fitted.classes).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert block.rows == 2


def test_a_class_is_stored_as_its_number() -> None:
    fitted, table = everything()
    spec = dataclasses.replace(fitted.spec, label=Label("day", "multi_class", classes=7))
    fitted = dataclasses.replace(fitted, spec=spec)
    (payload,), _ = encode_blocks(table.append_column("day", pa.array([6, 0])), Encoder(fitted), spec)
    label = decode_block(payload, spec).label
    assert isinstance(label, np.ndarray)
    assert (label.dtype, label.tolist()) == (np.int64, [6, 0])


def test_tensorflow_reads_sparse_rows_and_packed_classes() -> None:
    """The names that the layout promises give a ragged tensor and a tf.SparseTensor (F9)."""
    fitted, table = everything()
    (payload,), _ = encode_blocks(table, Encoder(fitted), fitted.spec)

    def rows_of(name: str, dtype: tf.DType, lengths: str) -> tf.io.RaggedFeature:
        return tf.io.RaggedFeature(dtype, name, [tf.io.RaggedFeature.RowLengths(lengths)])

    columns = tf.io.parse_single_example(
        payload,
        {
            "indices": rows_of("basket/indices", tf.int64, "basket/row_lengths"),
            "values": rows_of("basket/values", tf.float32, "basket/row_lengths"),
            "topics": rows_of("label/topics", tf.int64, "label/topics/row_lengths"),
        },
    )
    assert columns["indices"].to_list() == [[2, 7], []]
    assert columns["values"].to_list() == [[1.0, 0.5], []]
    assert columns["topics"].to_list() == [[1, 0], []]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("day", pa.array([1, None]), "key column 'day' has a null"),
        ("flight_id", pa.array(["a", None]), "key column 'flight_id' has a null"),
        ("importance", pa.array([1.0, None]), "weight column 'importance' has the value None"),
        ("importance", pa.array([1.0, -2.0]), "weight column 'importance' has the value -2.0"),
        ("importance", pa.array([1.0, float("inf")]), "weight column 'importance' has the value inf"),
        ("importance", pa.array(["1", "2"]), "weight column 'importance' has type string"),
    ],
    ids=["null number as key", "null text as key", "null weight", "negative", "infinite", "text"],
)
def test_keys_and_weights_that_cannot_be_are_refused(
    flight_features: FittedFeatures, flight_table: Tables, name: str, values: pa.Array, message: str
) -> None:
    table = with_column(flight_table(0, 2), name, values)
    with pytest.raises(ColumnError, match=message):
        encode_blocks(table, Encoder(flight_features), flight_features.spec)


def test_columns_are_checked_without_any_row(flight_features: FittedFeatures, flight_table: Tables) -> None:
    check_columns(flight_table(0, 0), flight_features.spec)


@pytest.mark.parametrize(
    ("name", "values", "error"),
    [
        ("distance", pa.array([], pa.string()), ColumnError),
        ("earlier", pa.array([], pa.string()), ColumnError),
        ("late", pa.array([], pa.string()), LabelError),
        ("importance", pa.array([], pa.string()), ColumnError),
    ],
    ids=["feature", "list", "label", "weight"],
)
def test_a_wrong_type_is_found_without_any_row(
    flight_features: FittedFeatures, flight_table: Tables, name: str, values: pa.Array, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"'{name}' has type string"):
        check_columns(with_column(flight_table(0, 0), name, values), flight_features.spec)


@pytest.mark.parametrize("name", ["distance", "late", "importance", "day"])
def test_a_missing_column_is_found_without_any_row(
    flight_features: FittedFeatures, flight_table: Tables, name: str
) -> None:
    with pytest.raises(ColumnError, match=f"column '{name}'.* is missing"):
        check_columns(flight_table(0, 0).drop_columns(name), flight_features.spec)


def test_equal_rows_give_equal_bytes(flight_features: FittedFeatures, flight_table: Tables) -> None:
    def payload(table: Any) -> bytes:
        return encode_blocks(table, Encoder(flight_features), flight_features.spec)[0][0]

    whole = flight_table(0, 10)
    chunked = pa.concat_tables([whole.slice(0, 3), whole.slice(3)])
    assert payload(whole) == payload(chunked)


@pytest.mark.parametrize("rows_per_block", [1, 3, 4, 7, 100])
def test_rows_that_are_encoded_at_once_are_cut_into_the_blocks_that_they_would_be_alone(
    flight_features: FittedFeatures, flight_table: Callable[[int, int], pa.Table], rows_per_block: int
) -> None:
    encoder, table = Encoder(flight_features), flight_table(0, 11)
    records, _ = encode_blocks(table, encoder, flight_features.spec, rows_per_block)
    alone = [
        encode_blocks(table.slice(start, rows_per_block), encoder, flight_features.spec)[0][0]
        for start in range(0, 11, rows_per_block)
    ]
    assert records == alone

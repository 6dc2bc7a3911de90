"""The block layout of any table: rows come back, and TensorFlow parses it (T1)."""

from datetime import UTC
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.tfrecord.arrow_schema import FeatureTypeError, SchemaError, ValueNotStorableError
from mirrorspark.data_pipelines.tfrecord.examples import MalformedExampleError, decode_example, encode_example
from mirrorspark.data_pipelines.tfrecord.table_blocks import (
    BLOCK_ROWS,
    decode_table_block,
    encode_table_block,
    is_table_block,
    table_block_rows,
)

FLOATS = st.floats(width=32, allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "bool": (pa.bool_(), st.booleans()),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "double": (pa.float64(), FLOATS),
    "date": (pa.date32(), st.dates()),
    "time": (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    "decimal": (pa.decimal128(6, 2), st.integers(-999, 999).map(lambda cents: Decimal(cents) / 100)),
    "string": (pa.string(), TEXTS),
    "binary": (pa.binary(), st.binary(max_size=20)),
    "ints": (pa.list_(pa.int32()), st.lists(st.integers(-5, 5), max_size=4)),
    "strings": (pa.list_(pa.string()), st.lists(TEXTS, max_size=4)),
    "pair": (pa.list_(pa.float32(), 2), st.lists(FLOATS, min_size=2, max_size=2)),
    "nested": (pa.list_(pa.list_(pa.int64())), st.lists(st.none() | st.lists(st.just(7), max_size=3), max_size=3)),
    "null": (pa.null(), st.none()),
}  # fmt: skip
SCHEMA = pa.schema([(name, type_) for name, (type_, _) in COLUMNS.items()])


@given(st.lists(st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()}), max_size=8))
def test_rows_of_every_type_come_back(rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    back = decode_table_block(encode_table_block(batch), SCHEMA)
    back.validate(full=True)
    assert back.to_pylist() == batch.to_pylist()
    assert back.schema == SCHEMA


def test_a_block_is_the_arrays_that_are_documented() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "age": pa.array([30, None, 50]),
            "name": ["a", "b", "c"],
            "ids": pa.array([[1, 2], None, []], pa.list_(pa.int64())),
            "clicks": pa.array([[[1], None], [], [[2, 3]]], pa.list_(pa.list_(pa.int64()))),
        }
    )
    stored = decode_example(encode_table_block(batch))
    assert {name: list(values) for name, values in stored.items()} == {
        "block/rows": [3],
        "age": [30, 0, 50],
        "age/is_null": [0, 1, 0],
        "name": [b"a", b"b", b"c"],
        "ids": [1, 2],
        "ids/row_lengths": [2, 0, 0],
        "ids/is_null": [0, 1, 0],
        "clicks": [1, 2, 3],
        "clicks/row_lengths": [2, 0, 1],
        "clicks/inner_row_lengths": [1, 0, 2],
        "clicks/inner_is_null": [0, 1, 0],
    }


def test_tensorflow_parses_a_block() -> None:
    batch = pa.RecordBatch.from_pydict({"x": [1.5, 2.5], "ids": [[1, 2, 3], [4]]})
    parsed = tf.io.parse_single_example(
        encode_table_block(batch),
        {
            "x": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
            "ids": tf.io.RaggedFeature(tf.int64, "ids", (tf.io.RaggedFeature.RowLengths("ids/row_lengths"),)),
        },
    )
    assert parsed["x"].numpy().tolist() == [1.5, 2.5]
    assert parsed["ids"].to_list() == [[1, 2, 3], [4]]


def test_vectors_come_back() -> None:
    vector = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    rows = [
        {"type": 1, "size": None, "indices": None, "values": [1.0]},
        {"type": 0, "size": 9, "indices": [3], "values": [2.0]},
        None,
    ]
    batch = pa.RecordBatch.from_arrays([pa.array(rows, vector)], ["v"])
    assert decode_table_block(encode_table_block(batch), batch.schema).to_pylist() == batch.to_pylist()


def test_columns_can_be_chosen_and_those_a_block_lacks_are_null() -> None:
    block = encode_table_block(pa.RecordBatch.from_pydict({"a": [1, 2], "b": ["x", "y"]}))
    schema = pa.schema([("b", pa.string()), ("c", pa.list_(pa.list_(pa.string()))), ("d", pa.float32())])
    assert decode_table_block(block, schema).to_pylist() == [
        {"b": "x", "c": None, "d": None},
        {"b": "y", "c": None, "d": None},
    ]
    assert decode_table_block(block, pa.schema([("c", pa.int64())])).num_rows == 2


def test_a_block_is_told_from_a_row() -> None:
    assert is_table_block(encode_table_block(pa.RecordBatch.from_pydict({"a": [1]})))
    row = encode_example({"a": np.array([1])})
    assert not is_table_block(row)
    with pytest.raises(FeatureTypeError, match="feature 'a' of record 7 at byte 99 "):
        decode_table_block(
            encode_table_block(pa.RecordBatch.from_pydict({"a": [1]})),
            pa.schema([("a", pa.string())]),
            record=7,
            offset=99,
        )
    with pytest.raises(MalformedExampleError, match=r"part-1: record 7 is not .*not a block of rows"):
        decode_table_block(row, pa.schema([("a", pa.int64())]), name="part-1", record=7)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", BLOCK_ROWS], "column 'block/rows' has a name that is reserved"),
        (["a", "a/is_null"], "column 'a/is_null' has a name that is reserved for the features of column 'a'"),
        (["a/row_lengths", "a"], "column 'a/row_lengths' has a name that is reserved"),
        (["a", "a"], "columns 'a' and 'a' would both be stored as feature 'a'"),
    ],
)
def test_reserved_and_double_names_are_refused(names: list[str], message: str) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1])] * 2, names)
    with pytest.raises(SchemaError, match=message):
        encode_table_block(batch)


def test_a_null_in_a_list_is_refused() -> None:
    with pytest.raises(ValueNotStorableError, match="column 'x' has a null inside the list of row 0"):
        encode_table_block(pa.RecordBatch.from_pydict({"x": [[1, None]]}))


@pytest.mark.parametrize(
    ("stored", "type_", "message"),
    [
        ({"x": np.array([1, 2])}, pa.float32(), "is of kind int64_list, but its column of type float asks"),
        ({"x": np.array([1])}, pa.int64(), "has 1 values where its block says 2"),
        ({"x": np.array([1, 2])}, pa.list_(pa.int64()), "has no '/row_lengths' next to it"),
        ({"x": np.array([1]), "x/row_lengths": np.array([1, -1])}, pa.list_(pa.int64()), "has the length -1 in the"),
        ({"x": np.array([1]), "x/row_lengths": np.array([0, 0])}, pa.list_(pa.int64()), "has 1 values where the '/row"),
        ({"x": np.array([1]), "x/row_lengths": np.array([1])}, pa.list_(pa.int64()), "a damaged '/row_lengths'"),
        ({"x": np.array([1, 2]), "x/is_null": [b"a"]}, pa.int64(), "has a damaged '/is_null' next to it"),
        ({"x": np.array([1, 300])}, pa.int8(), r"\(row 1 of a block\) has the value 300, which does not fit int8"),
    ],
)  # fmt: skip
def test_a_damaged_or_other_block_is_refused(stored: dict[str, Any], type_: pa.DataType, message: str) -> None:
    payload = encode_example({BLOCK_ROWS: np.array([2]), **stored})
    with pytest.raises(FeatureTypeError, match=f"part-1: feature 'x' of record 7 .*{message}"):
        decode_table_block(payload, pa.schema([("x", type_)]), name="part-1", record=7)


def test_mutated_blocks_are_refused_or_read() -> None:
    generator = np.random.default_rng(4)
    batch = pa.RecordBatch.from_pylist(
        [{"int64": 1, "ints": [1, 2], "string": "abc", "nested": [[1], None]}, {"ints": [], "nested": None}], SCHEMA
    )
    seed = np.frombuffer(encode_table_block(batch), np.uint8)
    for _ in range(1500):
        content = seed.copy()
        content[generator.integers(0, content.size, 2)] = generator.integers(0, 256, 2)
        try:
            decode_table_block(content.tobytes(), SCHEMA).validate(full=True)
        except (FeatureTypeError, MalformedExampleError):
            continue


INT64S = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5) | st.sampled_from([2**30, 2**63 - 1 - 2**30, 2**31])


def test_lengths_that_add_up_only_modulo_64_bits_are_refused() -> None:
    # 2**30 + (2**63 - 1 - 2**30) + (2**63 - 1) + 6 = 2**64 + 4: as an int64, the 4 values there are.
    lengths = np.array([2**30, 2**63 - 1 - 2**30, 2**63 - 1, 6])
    block = {BLOCK_ROWS: np.array([4]), "x": np.arange(4), "x/row_lengths": lengths}
    with pytest.raises(
        FeatureTypeError, match="has the length 1073741824 in the '/row_lengths' next to it, but only 4 values"
    ):
        decode_table_block(encode_example(block), pa.schema([("x", pa.list_(pa.int64()))]))
    block |= {"x/row_lengths": np.ones(4, np.int64), "x/inner_row_lengths": lengths}
    with pytest.raises(FeatureTypeError, match="has the length 1073741824 in the '/inner_row_lengths'"):
        decode_table_block(encode_example(block), pa.schema([("x", pa.list_(pa.list_(pa.int64())))]))


@given(st.data())
def test_blocks_of_any_lengths_are_refused_or_sound(data: st.DataObject) -> None:
    lengths = st.lists(INT64S, max_size=5).map(lambda values: np.array(values, np.int64))
    block = {"x": np.arange(data.draw(st.integers(0, 5))), "x/row_lengths": data.draw(lengths)}
    rows = data.draw(st.just(len(block["x/row_lengths"])) | INT64S)
    type_ = pa.list_(pa.int64())
    for suffix in ("x/inner_row_lengths", "x/is_null", "x/inner_is_null"):
        if data.draw(st.booleans()):
            block[suffix] = data.draw(lengths)
            type_ = pa.list_(pa.list_(pa.int64())) if suffix == "x/inner_row_lengths" else type_
    schema = pa.schema([("x", type_), ("absent", pa.list_(pa.float64()))])
    try:
        batch = decode_table_block(encode_example({BLOCK_ROWS: np.array([rows]), **block}), schema)
    except (FeatureTypeError, MalformedExampleError):
        return
    batch.validate(full=True)
    assert batch.num_rows == rows == len(block["x/row_lengths"])
    if type_ == pa.list_(pa.int64()) and "x/is_null" not in block:
        assert [len(values) for values in batch.column("x").to_pylist()] == block["x/row_lengths"].tolist()


@pytest.mark.parametrize("rows", [2**20 + 1, 2**31 - 1, 2**33, -1])
def test_a_number_of_rows_that_no_column_has_reserves_nothing(rows: int) -> None:
    schema = pa.schema([("absent", pa.float64())])
    for columns in ({}, {"x": np.array([1])}):
        block = encode_example({BLOCK_ROWS: np.array([rows]), **columns})
        with pytest.raises(MalformedExampleError, match=f"its feature 'block/rows' is {rows}"):
            decode_table_block(block, schema)
        with pytest.raises(MalformedExampleError, match=f"record 3 at byte 80 is not .*'block/rows' is {rows}"):
            table_block_rows(block, record=3, offset=80)


def test_a_column_that_was_not_asked_for_confirms_the_rows() -> None:
    rows = 2**20 + 1
    block = encode_example({BLOCK_ROWS: np.array([rows]), "x": np.zeros(rows, np.int64)})
    batch = decode_table_block(block, pa.schema([("absent", pa.float64())]))
    assert (batch.num_rows, batch.column(0).null_count) == (rows, rows)
    assert table_block_rows(block) == rows
    nothing = encode_example({BLOCK_ROWS: np.array([1024])})
    assert decode_table_block(nothing, pa.schema([("absent", pa.int64())])).num_rows == 1024

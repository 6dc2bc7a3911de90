"""The row layout against TensorFlow's own serializer and parser, and against damaged bytes (T1)."""

import contextlib
import ctypes
import io
import mmap
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.tfrecord import row_encoder
from mirrorspark.data_pipelines.tfrecord.arrow_schema import (
    FeatureTypeError,
    RecordType,
    SchemaError,
    TableColumn,
    ValueNotStorableError,
)
from mirrorspark.data_pipelines.tfrecord.codecs import open_records
from mirrorspark.data_pipelines.tfrecord.examples import MalformedExampleError, Strings, encode_example
from mirrorspark.data_pipelines.tfrecord.record_scan import RecordChunk, scan_records
from mirrorspark.data_pipelines.tfrecord.records import RecordWriter
from mirrorspark.data_pipelines.tfrecord.row_decoder import RowDecoder
from mirrorspark.data_pipelines.tfrecord.row_encoder import RowEncoder
from mirrorspark.data_pipelines.tfrecord.schema_inference import infer
from mirrorspark.data_pipelines.tfrecord.sequence_codec import encode_sequence_example
from mirrorspark.data_pipelines.tfrecord.stored_columns import StoredColumn
from mirrorspark.data_pipelines.tfrecord.table_blocks import encode_table_block

INT64S = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 300))
FLOATS = st.floats(width=32, allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)

# Every type that comes back as it was, with values of it.
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "bool": (pa.bool_(), st.booleans()),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "int16": (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    "int32": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "int64": (pa.int64(), INT64S),
    "uint32": (pa.uint32(), st.integers(0, 2**32 - 1)),
    "date": (pa.date32(), st.dates()),
    "timestamp": (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    "local time": (pa.timestamp("us"), st.datetimes()),
    "float": (pa.float32(), FLOATS),
    "double": (pa.float64(), FLOATS),
    "string": (pa.string(), TEXTS),
    "large string": (pa.large_string(), TEXTS),
    "binary": (pa.binary(), st.binary(max_size=200)),
}


def one_column(type_: pa.DataType, values: list[Any], name: str = "x") -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, type_)], [name])


def payloads_of(batch: pa.RecordBatch, record_type: RecordType = RecordType.EXAMPLE) -> list[bytes]:
    encoded = RowEncoder(batch.schema, record_type).encode(batch)
    content = encoded.content.tobytes()
    bounds = encoded.offsets.tolist()
    return [content[start + 12 : stop - 4] for start, stop in pairwise(bounds)]


def chunk_of(payloads: list[bytes]) -> RecordChunk:
    """Return payloads that did not come from a file as a chunk."""
    stops = np.cumsum([len(payload) for payload in payloads], dtype=np.int64)
    starts = stops - np.array([len(payload) for payload in payloads], np.int64)
    return RecordChunk(np.frombuffer(b"".join(payloads), np.uint8), starts, stops)


def decoded(payloads: list[bytes], schema: pa.Schema, record_type: RecordType = RecordType.EXAMPLE) -> pa.RecordBatch:
    batch = RowDecoder(schema, record_type).decode(chunk_of(payloads))
    batch.validate(full=True)
    return batch


def assert_comes_back(batch: pa.RecordBatch, record_type: RecordType = RecordType.EXAMPLE) -> None:
    assert decoded(payloads_of(batch, record_type), batch.schema, record_type).equals(batch)


def tensorflow_feature(value: Any, type_: pa.DataType) -> tf.train.Feature:
    values = value if isinstance(value, list) else [value]
    if pa.types.is_list(type_):
        type_ = type_.value_type
    if pa.types.is_floating(type_):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if pa.types.is_integer(type_):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    stored = [value.encode() if isinstance(value, str) else value for value in values]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=stored))


def tensorflow_example(row: Mapping[str, Any], schema: pa.Schema) -> bytes:
    features = {
        name: tensorflow_feature(value, schema.field(name).type) for name, value in row.items() if value is not None
    }
    message = tf.train.Example(features=tf.train.Features(feature=features))
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


def lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.lists(values, max_size=20))


SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("price", pa.float32()),
        ("name", pa.string()),
        ("größe", pa.int64()),
        ("photo", pa.binary()),
        ("ids", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float32())),
        ("tags", pa.list_(pa.string())),
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.one_of(st.none(), INT64S),
            "price": st.one_of(st.none(), FLOATS),
            "name": st.one_of(st.none(), TEXTS, st.just("x" * 200)),
            "größe": INT64S,
            "photo": st.one_of(st.none(), st.binary(max_size=300)),
            "ids": lists(INT64S),
            "scores": lists(FLOATS),
            "tags": lists(TEXTS),
        }
    ),
    max_size=12,
)


@given(ROWS)
def test_records_equal_those_that_tensorflow_writes_and_come_back(rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    payloads = payloads_of(batch)
    assert payloads == [tensorflow_example(row, SCHEMA) for row in rows]
    assert decoded(payloads, SCHEMA).equals(batch)


def test_a_file_of_records_equals_the_one_that_tensorflow_writes(tmp_path: Path) -> None:
    path = tmp_path / "tensorflow.tfrecord"
    rows = [{"a": 5, "b": 1.5}, {"a": None, "b": None}, {"a": -1, "b": 2.0}]
    schema = pa.schema([("b", pa.float32()), ("a", pa.int64())])
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            writer.write(tensorflow_example(row, schema))
    encoded = RowEncoder(schema).encode(pa.RecordBatch.from_pylist(rows, schema))
    assert path.read_bytes() == encoded.content.tobytes()


def test_a_name_comes_before_the_names_that_it_begins() -> None:
    # As in C++; protobuf's Python runtime (upb) writes these the other way round.
    batch = pa.RecordBatch.from_pydict({"x/y": [1], "x": [2], "": [3]})
    assert payloads_of(batch) == [encode_example({"x/y": np.array([1]), "x": np.array([2]), "": np.array([3])})]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("depth", [0, 1, 2])
@given(data=st.data())
def test_every_type_comes_back(name: str, depth: int, data: st.DataObject) -> None:
    type_, values = TYPES[name]
    for level in range(depth):
        type_ = pa.list_(type_)
        # A list of values holds no null, a list of lists may.
        values = st.lists(st.one_of(st.none(), values) if level else values, max_size=5)
    drawn = data.draw(st.lists(st.one_of(st.none(), values), max_size=8))
    assert_comes_back(
        one_column(type_, drawn), RecordType.SEQUENCE_EXAMPLE if depth == 2 else data.draw(
            st.sampled_from([RecordType.EXAMPLE, RecordType.SEQUENCE_EXAMPLE])
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "value", "stored"),
    [
        # 1970-01-11 is ten days after the epoch; a second is 10**6 microseconds.
        (pa.date32(), date(1970, 1, 11), 10),
        (pa.date32(), date(1969, 12, 31), -1),
        (pa.timestamp("us", "UTC"), datetime(1970, 1, 1, 0, 0, 1, 5, UTC), 1_000_005),
        (pa.timestamp("s"), datetime(1970, 1, 1, 0, 0, 2), 2_000_000),
        (pa.bool_(), True, 1),
        (pa.int8(), -3, -3),
    ],
)
def test_dates_times_and_booleans_are_stored_as_documented(type_: pa.DataType, value: Any, stored: int) -> None:
    batch = one_column(type_, [value])
    assert payloads_of(batch) == [encode_example({"x": np.array([stored])})]
    assert_comes_back(batch)


def test_float64_float16_and_decimals_are_rounded_to_float32() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "d": pa.array([0.1, None]),
            "h": pa.array(np.array([0.5, 2.0], np.float16)),
            "n": pa.array([Decimal("12.34"), None], pa.decimal128(10, 2)),
        }
    )
    back = decoded(payloads_of(batch), batch.schema)
    # 0.1 is not a float32; the nearest is 0.100000001490116...
    assert back.column("d").to_pylist() == [float(np.float32(0.1)), None]
    assert back.column("h").equals(batch.column("h"))
    assert back.column("n").to_pylist() == [Decimal("12.34"), None]


def test_nan_and_infinity_come_back() -> None:
    values = decoded(payloads_of(one_column(pa.float32(), [np.nan, np.inf, -np.inf])), pa.schema([("x", pa.float32())]))
    assert np.array_equal(values.column("x").to_numpy(), [np.nan, np.inf, -np.inf], equal_nan=True)


def test_null_is_a_missing_feature_and_an_empty_list_is_an_empty_one() -> None:
    schema = pa.schema([("x", pa.list_(pa.int64())), ("always null", pa.null())])
    batch = pa.RecordBatch.from_pylist([{"x": None}, {"x": []}], schema)
    assert payloads_of(batch) == [encode_example({}), encode_example({"x": np.array([], np.int64)})]
    assert_comes_back(batch)


VECTOR = pa.struct(
    [
        pa.field("type", pa.int8(), nullable=False),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        ("values", pa.list_(pa.field("element", pa.float64(), nullable=False))),
    ]
)
VECTORS = [
    {"type": 1, "size": None, "indices": None, "values": [1.0, 0.5]},
    {"type": 0, "size": 1000, "indices": [3, 999], "values": [2.0, -1.0]},
    None,
    {"type": 0, "size": 7, "indices": [], "values": []},
    {"type": 1, "size": None, "indices": None, "values": []},
]


def test_vectors_are_stored_dense_or_as_indices_values_and_size_and_come_back() -> None:
    batch = one_column(VECTOR, VECTORS, "v")
    dense, sparse, missing, *_ = payloads_of(batch)
    assert dense == encode_example({"v": np.array([1.0, 0.5], np.float32)})
    assert sparse == encode_example(
        {"v/indices": np.array([3, 999]), "v/values": np.array([2.0, -1.0], np.float32), "v/size": np.array([1000])}
    )
    assert missing == encode_example({})
    assert_comes_back(batch)
    assert_comes_back(batch.slice(1, 3))


def test_tensorflow_reads_a_sparse_vector_as_a_sparse_feature() -> None:
    batch = one_column(VECTOR, VECTORS[1:2], "v")
    parsed = tf.io.parse_single_example(
        payloads_of(batch)[0], {"v": tf.io.SparseFeature("v/indices", "v/values", tf.float32, 1000)}
    )
    assert tf.sparse.to_dense(parsed["v"]).numpy()[[3, 999, 4]].tolist() == [2.0, -1.0, 0.0]


SEQUENCES = pa.schema(
    [("user", pa.int64()), ("tags", pa.list_(pa.string())), ("clicks", pa.list_(pa.list_(pa.int64()))),
     ("words", pa.list_(pa.list_(pa.string()))), ("weights", pa.list_(pa.list_(pa.float32())))]
)  # fmt: skip


def tensorflow_sequence(row: Mapping[str, Any]) -> bytes:
    context = {
        name: tensorflow_feature(row[name], SEQUENCES.field(name).type)
        for name in ("user", "tags")
        if row[name] is not None
    }
    feature_lists = {
        name: tf.train.FeatureList(
            feature=[
                tf.train.Feature() if one is None else tensorflow_feature(one, SEQUENCES.field(name).type.value_type)
                for one in row[name]
            ]
        )
        for name in ("clicks", "words", "weights")
        if row[name] is not None
    }
    message = tf.train.SequenceExample(
        context=tf.train.Features(feature=context), feature_lists=tf.train.FeatureLists(feature_list=feature_lists)
    )
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


@given(
    st.lists(
        st.fixed_dictionaries(
            {"user": st.one_of(st.none(), INT64S), "tags": lists(TEXTS), "clicks": lists(lists(INT64S)),
             "words": lists(lists(TEXTS)), "weights": lists(lists(FLOATS))}
        ),
        max_size=6,
    )
)  # fmt: skip
def test_sequence_examples_equal_those_that_tensorflow_writes_and_come_back(rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, SEQUENCES)
    payloads = payloads_of(batch, RecordType.SEQUENCE_EXAMPLE)
    assert payloads == [tensorflow_sequence(row) for row in rows]
    assert decoded(payloads, SEQUENCES, RecordType.SEQUENCE_EXAMPLE).equals(batch)


def test_payloads_are_records_as_they_are() -> None:
    batch = one_column(pa.binary(), [b"", b"abc", b"\x00" * 300], "byteArray")
    assert payloads_of(batch, RecordType.BYTE_ARRAY) == [b"", b"abc", b"\x00" * 300]
    assert_comes_back(batch, RecordType.BYTE_ARRAY)
    with pytest.raises(ValueNotStorableError, match="column 'byteArray' is null in row 1; a record has a payload"):
        payloads_of(one_column(pa.binary(), [b"", None], "byteArray"), RecordType.BYTE_ARRAY)


def test_slices_dictionaries_and_fixed_lengths_are_encoded_by_value() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "s": pa.array(["a", "bc", None, "def", ""]),
            "l": pa.array([[1], None, [], [2, 3], [4]], pa.list_(pa.int64())),
            "d": pa.array(["u", "v", None, "u", "u"]).dictionary_encode(),
            "f": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], pa.list_(pa.float32(), 2)),
            "b": pa.array([b"12", b"34", None, b"56", b"78"], pa.binary(2)),
        }
    )
    schema = batch.schema.set(2, pa.field("d", pa.string()))
    for start, length in ((0, 5), (1, 3), (4, 1), (2, 0)):
        part = batch.slice(start, length)
        back = decoded(payloads_of(part), schema)
        assert back.to_pylist() == part.to_pylist()


def test_only_the_columns_asked_for_are_read() -> None:
    # The list of "b" ends within a number: reading it would fail.
    damaged = (
        b"\x0a\x17" + b"\x0a\x0a\x0a\x01a\x12\x05\x1a\x03\x0a\x01\x05" + b"\x0a\x09\x0a\x01b\x12\x04\x1a\x02\x0a\xff"
    )
    back = decoded([damaged, damaged], pa.schema([("a", pa.int64()), ("absent", pa.float32())]))
    assert back.to_pylist() == [{"a": 5, "absent": None}] * 2
    with pytest.raises(MalformedExampleError):
        decoded([damaged], pa.schema([("b", pa.list_(pa.int64()))]))


def example_of(**features: Any) -> bytes:
    return encode_example(features)


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        (pa.int64(), np.float32([1]), "is of kind float_list, but its column of type int64 asks for int64_list"),
        (pa.list_(pa.float32()), [b"a"], "is of kind bytes_list, but its column of type list<.*> asks for float_list"),
        (pa.int64(), np.array([1, 2]), "has several values, but its column of type int64 takes one; ask for a list"),
        (pa.string(), [b"a", b"b"], "has several values, but its column of type string takes one"),
        (pa.int8(), np.array([300]), "has the value 300, which does not fit int8; ask for int64"),
        (pa.int32(), np.array([2**31]), "has the value 2147483648, which does not fit int32"),
        (pa.bool_(), np.array([2]), "has the value 2, which does not fit bool"),
        (pa.list_(pa.int16()), np.array([1, -40000]), "has the value -40000, which does not fit int16"),
        (pa.date32(), np.array([2**40]), "has the value 1099511627776, which does not fit date32"),
        (pa.decimal128(4, 2), np.float32([1e6]), "has the value 1000000.0, which does not fit decimal128.4, 2."),
        (pa.string(), [b"\xff"], "is not UTF-8 .*; ask for binary"),
        (pa.list_(pa.string()), [b"a", b"\xc3"], "is not UTF-8"),
        (pa.list_(pa.int64(), 3), np.array([1, 2]), "has 2 values, but its column asks for lists of 3"),
    ],
)  # fmt: skip
def test_a_feature_of_another_form_is_refused_with_file_and_record(type_: Any, value: Any, message: str) -> None:
    chunk = chunk_of([encode_example({}), encode_example({"x": value})])
    with pytest.raises(FeatureTypeError, match=f"^part-7: feature 'x' of record 1 {message}") as caught:
        RowDecoder(pa.schema([("x", type_)])).decode(chunk, name="part-7")
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (str(copy), copy.feature, copy.record, copy.file) == (str(caught.value), "x", 1, "part-7")


def test_a_missing_feature_is_refused_where_the_column_takes_no_null() -> None:
    schema = pa.schema([pa.field("x", pa.int64(), nullable=False)])
    assert decoded([example_of(x=np.array([4]))], schema).to_pylist() == [{"x": 4}]
    with pytest.raises(FeatureTypeError, match="feature 'x' of record 0 is missing"):
        decoded([example_of()], schema)


@pytest.mark.parametrize(
    ("type_", "values", "message"),
    [
        (pa.list_(pa.int64()), [[1], [2, None]], "column 'x' has a null inside the list of row 1"),
        (pa.list_(pa.list_(pa.int64())), [[[1]], None, [[2], [3, None]]], "has a null inside the list of row 2"),
        (pa.float64(), [1.0, 1e300], "column 'x' has the value 1e.300 in row 1; a float_list holds float32"),
        (pa.list_(pa.float64()), [[1.0], [], [2.0, -1e39]], "has the value -1e.39 in row 2"),
    ],
)
def test_a_value_that_no_record_holds_is_refused_by_row(type_: pa.DataType, values: list[Any], message: str) -> None:
    with pytest.raises(ValueNotStorableError, match=message):
        payloads_of(one_column(type_, values), RecordType.SEQUENCE_EXAMPLE)


def test_a_batch_of_another_schema_is_refused() -> None:
    encoder = RowEncoder(pa.schema([("x", pa.int64())]))
    with pytest.raises(SchemaError, match="a batch has the columns y: int64; this encoder was made for x: int64"):
        encoder.encode(one_column(pa.int64(), [1], "y"))


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def entry(name: bytes, feature: bytes) -> bytes:
    return field(1, field(1, name) + field(2, feature))


ODD = {
    "unpacked": (entry(b"x", field(3, b"\x08\x05\x08\x06")), [5, 6]),
    "packed in pieces": (entry(b"x", field(3, field(1, b"\x05") + b"\x08\x06" + field(1, b""))), [5, 6]),
    "value before key": (field(1, field(2, field(3, field(1, b"\x05"))) + field(1, b"x")), [5]),
    "name twice": (entry(b"x", field(3, field(1, b"\x05"))) + entry(b"x", field(3, field(1, b"\x06"))), [6]),
    "list in pieces": (entry(b"x", field(3, field(1, b"\x05")) + field(3, field(1, b"\x06"))), [5, 6]),
    "unknown field in the list": (entry(b"x", field(3, field(2, b"?") + field(1, b"\x05"))), [5]),
    "unknown field next to the list": (entry(b"x", field(4, b"?") + field(3, field(1, b"\x05"))), [5]),
    "no kind": (entry(b"x", b""), None),
    "no value": (field(1, field(1, b"x")), None),
    "empty": (entry(b"x", field(3, b"")), []),
    "empty and packed": (entry(b"x", field(3, field(1, b""))), []),
    "two kinds": (entry(b"x", field(1, field(1, b"v")) + field(3, field(1, b"\x05"))), [5]),
}  # fmt: skip


@pytest.mark.parametrize(("features", "expected"), ODD.values(), ids=ODD.keys())
def test_valid_records_of_other_writers_are_read_as_by_protobuf(features: bytes, expected: list[int] | None) -> None:
    usual = example_of(x=np.array([9]), y=np.array([1]))
    payloads = [usual, field(1, features), usual]
    rows = decoded(payloads, pa.schema([("x", pa.list_(pa.int64())), ("y", pa.int64())])).to_pylist()
    assert rows == [{"x": [9], "y": 1}, {"x": expected, "y": None}, {"x": [9], "y": 1}]
    if expected is None or len(expected) < 2:
        scalar = expected[0] if expected else None
        assert decoded(payloads, pa.schema([("x", pa.int64())])).column("x").to_pylist() == [9, scalar, 9]
    message = tf.train.Example.FromString(field(1, features))
    assert list(message.features.feature["x"].int64_list.value) == (expected or [])


SEQUENCE_ODD = {
    "feature lists in pieces": (
        field(2, field(1, field(1, b"x") + field(2, field(1, field(3, field(1, b"\x05"))))
        + field(2, field(1, field(3, field(1, b"\x06"))))))
    ),
    "two maps": field(2, b"") + field(2, field(1, field(1, b"x") + field(2, field(1, field(3, b"\x08\x05"))
    + field(1, field(3, b"\x08\x06"))))),
    "unknown field in a feature": field(
        2, field(1, field(1, b"x") + field(2, field(1, field(3, field(1, b"\x05")) + field(9, b"?"))
        + field(1, field(3, field(1, b"\x06")))))
    ),
}  # fmt: skip


@pytest.mark.parametrize("payload", SEQUENCE_ODD.values(), ids=SEQUENCE_ODD.keys())
def test_odd_sequence_examples_are_read_as_protobuf_does(payload: bytes) -> None:
    schema = pa.schema([("x", pa.list_(pa.list_(pa.int64())))])
    assert decoded([payload], schema, RecordType.SEQUENCE_EXAMPLE).to_pylist() == [{"x": [[5], [6]]}]
    lists_ = tf.train.SequenceExample.FromString(payload).feature_lists.feature_list["x"].feature
    assert [list(feature.int64_list.value) for feature in lists_] == [[5], [6]]


def tensorflow_rows(payloads: list[bytes], schema: pa.Schema) -> list[dict[str, Any]]:
    rows = []
    for payload in payloads:
        features = tf.train.Example.FromString(payload).features.feature
        row: dict[str, Any] = {}
        for name in schema.names:
            kind = features[name].WhichOneof("kind") if name in features else None
            row[name] = None if kind is None else (kind, list(getattr(features[name], kind).value))
        rows.append(row)
    return rows


FUZZED = pa.schema([("f", pa.list_(pa.float32())), ("i", pa.list_(pa.int64())), ("b", pa.list_(pa.binary()))])


def fuzz_seeds() -> list[bytes]:
    return [
        encode_example({"f": np.array([1.5, 2.0], np.float32), "i": np.array([1, -1, 300]), "b": [b"v", b"wxyz"]}),
        encode_example({"f": np.array([], np.float32), "zz": [b"other"], "i": np.array([7])}),
    ]


def test_mutated_records_are_refused_or_read_as_tensorflow_reads_them() -> None:
    generator = np.random.default_rng(11)
    seeds = fuzz_seeds()
    scalar = RowDecoder(pa.schema([("f", pa.float32()), ("i", pa.int64()), ("b", pa.binary())]))
    compared = 0
    for _ in range(3000):
        content = np.frombuffer(seeds[generator.integers(len(seeds))], np.uint8).copy()
        changes = generator.integers(1, 4)
        content[generator.integers(0, content.size, changes)] = generator.integers(0, 256, changes)
        payload = content[: generator.integers(content.size // 2, 3 * content.size)].tobytes()
        for decoder in (scalar, RowDecoder(FUZZED)):
            try:
                batch = decoder.decode(chunk_of([seeds[0], payload, seeds[0]]))
            except (FeatureTypeError, MalformedExampleError):
                continue
            batch.validate(full=True)
            assert batch.slice(0, 1).equals(batch.slice(2, 1)), "a neighbour was changed"
            try:
                (expected,) = tensorflow_rows([payload], FUZZED)
            except DecodeError:
                continue  # it looks into features that we pass over
            found = batch.slice(1, 1).to_pylist()[0]
            for name, cell in expected.items():
                # upb drops map entries with unknown fields, which C++ keeps.
                values = [] if cell is None else cell[1]
                ours = (
                    found[name] if isinstance(found[name], list) else [found[name]] if found[name] is not None else []
                )
                if cell is not None:
                    np.testing.assert_array_equal(ours, values)
                    compared += 1
    assert compared > 1000


def test_no_byte_outside_a_payload_changes_what_is_read() -> None:
    decoder = RowDecoder(FUZZED)
    for seed in fuzz_seeds():
        for size in range(len(seed) + 1):
            outcomes = []
            # The same cut payload between other neighbours, which must not show.
            for filling in (0x00, 0xFF, 0x0A):
                around = np.full(64, filling, np.uint8)
                content = np.concatenate([around, np.frombuffer(seed[:size], np.uint8), around])
                chunk = RecordChunk(content, np.array([64]), np.array([64 + size]))
                try:
                    outcomes.append(str(decoder.decode(chunk).to_pylist()))
                except (MalformedExampleError, FeatureTypeError) as error:
                    outcomes.append(str(error))
            assert len(set(outcomes)) == 1, (size, outcomes)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_read(payload: bytes) -> None:
    for record_type in (RecordType.EXAMPLE, RecordType.SEQUENCE_EXAMPLE):
        try:
            decoded([payload], pa.schema([("", pa.list_(pa.int64())), ("x", pa.string())]), record_type)
        except (FeatureTypeError, MalformedExampleError):
            continue


def records_of(path: Path) -> RecordChunk:
    with path.open("rb") as file:
        chunks = list(scan_records(open_records(file, name=path.name), name=path.name, chunk_bytes=2**26))
    assert len(chunks) == 1
    return chunks[0]


COUNTS = {
    "deepctr_criteo_sample.te.tfrecords": 40, "deepctr_criteo_sample.tr.tfrecords": 160,
    "fuxictr_tiny_test.tfrecord": 100, "fuxictr_tiny_train.tfrecord": 100, "fuxictr_tiny_valid.tfrecord": 100,
    "tfrecorder_images_validation.tfrecord.gz": 2, "tfx_penguin_eval.tfrecord.gz": 100,
    "tfx_penguin_train.tfrecord.gz": 234, "tfx_taxi-00000-of-00002.tfrecord.gz": 9988,
    "tfx_taxi-00001-of-00002.tfrecord.gz": 5012, "ydf_sentences.tfe-tfrecord": 2,
    "ydf_toy.nocompress-tfe-tfrecord-00000-of-00002": 3, "ydf_toy.nocompress-tfe-tfrecord-00001-of-00002": 1,
    "ydf_toy.tfe-tfrecord-00000-of-00002": 3, "ydf_toy.tfe-tfrecord-00001-of-00002": 1,
}  # fmt: skip
SEQUENCE_COUNTS = {
    "tfx_external_sequence.tfrecord.gz": 15000, "tfx_sequence_eval.tfrecord.gz": 4500,
    "tfx_sequence_train.tfrecord.gz": 10500,
}  # fmt: skip
RANKING_COUNTS = {
    "tfranking_eval_elwc.tfrecord": 10, "tfranking_train_elwc.tfrecord": 10,
    "tfranking_test_numerical_elwc.tfrecord": 9, "tfranking_train_numerical_elwc.tfrecord": 27,
    "tfranking_vali_numerical_elwc.tfrecord": 9,
}  # fmt: skip


def cell_of(feature: Any, kind: str) -> list[Any]:
    return list(getattr(feature, kind).value)


def as_stored(cell: Any, type_: pa.DataType) -> list[Any]:
    values = cell if pa.types.is_list(type_) else [cell]
    return [value.encode() if isinstance(value, str) else value for value in values]


@pytest.mark.parametrize("name", COUNTS)
def test_files_of_other_projects_decode_as_tensorflow_decodes_them(shared_data: Path, name: str) -> None:
    """T1: third-party files read; written back they hold the same."""
    chunk = records_of(shared_data / "tfrecords" / name)
    schema = infer(chunk, name=name).schema
    batch = RowDecoder(schema).decode(chunk, name=name)
    assert batch.num_rows == COUNTS[name]
    rows = batch.to_pylist()
    for row, start, stop in zip(rows, chunk.starts, chunk.stops, strict=True):
        features = tf.train.Example.FromString(chunk.content[start:stop].tobytes()).features.feature
        assert set(features) <= set(row)
        for column, cell in row.items():
            kind = features[column].WhichOneof("kind") if column in features else None
            expected = [] if kind is None else cell_of(features[column], kind)
            assert ([] if cell is None else as_stored(cell, schema.field(column).type)) == expected, column
    assert decoded(payloads_of(batch), schema).equals(batch)


@pytest.mark.parametrize("name", SEQUENCE_COUNTS)
def test_sequences_of_other_projects_decode_as_tensorflow_decodes_them(shared_data: Path, name: str) -> None:
    chunk = records_of(shared_data / "tfrecords" / name)
    schema = infer(chunk, RecordType.SEQUENCE_EXAMPLE, name=name).schema
    batch = RowDecoder(schema, RecordType.SEQUENCE_EXAMPLE).decode(chunk, name=name)
    assert batch.num_rows == SEQUENCE_COUNTS[name]
    for row, start, stop in list(zip(batch.to_pylist(), chunk.starts, chunk.stops, strict=True))[::20]:
        message = tf.train.SequenceExample.FromString(chunk.content[start:stop].tobytes())
        for column, feature in message.context.feature.items():
            kind = feature.WhichOneof("kind")
            if kind is not None and (values := cell_of(feature, kind)):
                assert as_stored(row[column], schema.field(column).type) == values
        for column, listed in message.feature_lists.feature_list.items():
            type_ = schema.field(column).type.value_type
            assert len(row[column]) == len(listed.feature)
            for cell, feature in zip(row[column], listed.feature, strict=True):
                kind = feature.WhichOneof("kind")
                assert (cell is None) == (kind is None)
                assert kind is None or as_stored(cell, type_) == cell_of(feature, kind)
    assert decoded(payloads_of(batch, RecordType.SEQUENCE_EXAMPLE), schema, RecordType.SEQUENCE_EXAMPLE).equals(batch)


@pytest.mark.parametrize("name", RANKING_COUNTS)
def test_lists_of_examples_are_refused_as_such(shared_data: Path, name: str) -> None:
    chunk = records_of(shared_data / "tfrecords" / name)
    assert len(chunk.starts) == RANKING_COUNTS[name]
    message = f"^{name}: record 0 at byte 0 is not a tf.train.Example: it is an ExampleListWithContext"
    with pytest.raises(MalformedExampleError, match=message):
        infer(chunk, name=name)
    with pytest.raises(MalformedExampleError, match=message):
        RowDecoder(pa.schema([("x", pa.int64())])).decode(chunk, name=name)
    with pytest.raises(MalformedExampleError, match="ExampleListWithContext"):
        infer(chunk, RecordType.SEQUENCE_EXAMPLE, name=name)
    payloads = RowDecoder(pa.schema([("byteArray", pa.binary())]), RecordType.BYTE_ARRAY).decode(chunk)
    assert payloads.num_rows == RANKING_COUNTS[name]


@pytest.fixture
def guarded() -> Iterator[Callable[[bytes], npt.NDArray[np.uint8]]]:
    """Return a function that puts bytes right before memory that may not be read: one byte further is a crash."""
    library = ctypes.CDLL(None, use_errno=True)
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    memory = np.frombuffer(pages, np.uint8)
    guard = ctypes.c_void_p(memory.ctypes.data + mmap.PAGESIZE)
    assert library.mprotect(guard, mmap.PAGESIZE, 0) == 0

    def place(content: bytes) -> npt.NDArray[np.uint8]:
        start = mmap.PAGESIZE - len(content)
        memory[start : mmap.PAGESIZE] = np.frombuffer(content, np.uint8)
        return memory[start : mmap.PAGESIZE]

    yield place
    assert library.mprotect(guard, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_nothing_is_read_beyond_the_buffer(guarded: Callable[[bytes], npt.NDArray[np.uint8]]) -> None:
    generator = np.random.default_rng(13)
    sequence = encode_sequence_example({"i": np.array([1, 300])}, {"b": [[b"x", b"yz"], None]})
    nested = pa.schema([("i", pa.list_(pa.int64())), ("b", pa.list_(pa.list_(pa.binary())))])
    scalars = pa.schema([("f", pa.float32()), ("i", pa.int64()), ("b", pa.string())])
    decoders = [
        (RowDecoder(FUZZED), RecordType.EXAMPLE),
        (RowDecoder(scalars), RecordType.EXAMPLE),
        (RowDecoder(nested, RecordType.SEQUENCE_EXAMPLE), RecordType.SEQUENCE_EXAMPLE),
    ]
    for number in range(1500):
        seed = [*fuzz_seeds(), sequence][number % 3]
        mutated = np.frombuffer(seed, np.uint8).copy()
        mutated[generator.integers(0, mutated.size, number % 4)] = generator.integers(0, 256)
        payload = mutated[: generator.integers(0, mutated.size + 1)].tobytes()
        content = guarded(payload)
        chunk = RecordChunk(content, np.array([0]), np.array([len(payload)]))
        for decoder, record_type in decoders:
            with contextlib.suppress(FeatureTypeError, MalformedExampleError):
                decoder.decode(chunk)
            with contextlib.suppress(SchemaError, MalformedExampleError):
                infer(chunk, record_type)


@given(st.lists(st.permutations(range(8)), min_size=1, max_size=6), st.integers(0, 255))
def test_features_in_any_order_are_found(orders: list[list[int]], missing: int) -> None:
    # C++ writes maps in the order of its hash table, another one for each message.
    payloads = []
    for order in orders:
        present = [number for number in order if not missing >> number & 1]
        payloads.append(
            b"".join(
                field(1, entry(f"name {number}".encode(), field(3, field(1, bytes([number]))))) for number in present
            )
        )
    schema = pa.schema([(f"name {number}", pa.int64()) for number in (1, 3, 5, 6)])
    expected = {f"name {number}": None if missing >> number & 1 else number for number in (1, 3, 5, 6)}
    assert decoded(payloads, schema).to_pylist() == [expected] * len(orders)


def test_records_are_numbered_over_the_chunks_of_a_file() -> None:
    payloads = [example_of(x=np.array([number])) for number in range(50)] + [example_of(x=[b"text"])]
    file = io.BytesIO()
    writer = RecordWriter(file)
    for payload in payloads:
        writer.write(payload)
    decoder = RowDecoder(pa.schema([("x", pa.int64())]))
    *chunks, last = scan_records(io.BytesIO(file.getvalue()), chunk_bytes=200)
    values = [value for chunk in chunks for value in decoder.decode(chunk).column("x").to_pylist()]
    assert values == list(range(last.first_record))
    place = sum(16 + len(payload) for payload in payloads[:-1])
    message = f"part-1: feature 'x' of record 50 at byte {place} is of kind bytes_list"
    with pytest.raises(FeatureTypeError, match=message) as caught:
        decoder.decode(last, name="part-1")
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (str(copy), copy.offset) == (str(caught.value), place)


def chunk_of_file(payloads: list[bytes]) -> RecordChunk:
    file = io.BytesIO()
    writer = RecordWriter(file)
    for payload in payloads:
        writer.write(payload)
    (chunk,) = scan_records(io.BytesIO(file.getvalue()))
    return chunk


MALFORMED = b"\x0a\x05"  # a field of 5 bytes that are not there
ODD_ROW = field(1, entry(b"x", field(3, field(1, b"\x07")))) + b"\x18\x01"  # an unknown field after x = 7
NUMBERS = pa.schema([pa.field("x", pa.int64(), nullable=False)])


def test_a_malformed_record_is_named_by_its_place_in_the_file() -> None:
    good = example_of(x=np.array([1]))
    # The non-canonical record, rewritten, lies elsewhere in memory; errors still give places in the file.
    chunk = chunk_of_file([good, ODD_ROW, good, MALFORMED])
    place = 3 * 16 + 2 * len(good) + len(ODD_ROW)
    message = f"^part-1: record 3 at byte {place} is not a tf.train.Example: .*, at byte 0 of the payload"
    with pytest.raises(MalformedExampleError, match=message) as caught:
        RowDecoder(NUMBERS).decode(chunk, name="part-1")
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (str(copy), copy.record_offset) == (str(caught.value), place)
    chunk = chunk_of_file([good, ODD_ROW, example_of(x=[b"a"])])
    with pytest.raises(FeatureTypeError, match=f"record 2 at byte {2 * 16 + len(good) + len(ODD_ROW)} is of kind"):
        RowDecoder(NUMBERS).decode(chunk)


@given(st.lists(st.sampled_from(["good", "odd", "malformed", "block"]), max_size=9))
def test_malformed_records_are_skipped_and_counted(kinds: list[str]) -> None:
    payloads, values = [], []
    for number, kind in enumerate(kinds):
        values += {"good": [number], "odd": [7]}.get(kind, [])
        row = example_of(x=np.array([number]))
        block = encode_table_block(pa.RecordBatch.from_pydict({"x": [number]}))
        payloads.append({"good": row, "odd": ODD_ROW, "malformed": MALFORMED, "block": block}[kind])
    batch, skipped = RowDecoder(NUMBERS).decode_intact(chunk_of(payloads))
    assert batch.schema == NUMBERS
    assert batch.column("x").to_pylist() == values
    assert skipped == len(kinds) - len(values)


def test_a_schema_that_does_not_fit_is_not_skipped() -> None:
    chunk = chunk_of_file([MALFORMED, example_of(x=[b"a"])])
    with pytest.raises(FeatureTypeError, match=f"feature 'x' of record 1 at byte {16 + len(MALFORMED)} is of kind"):
        RowDecoder(NUMBERS).decode_intact(chunk)


def test_a_block_among_rows_is_refused() -> None:
    block = encode_table_block(pa.RecordBatch.from_pydict({"x": [1, 2]}))
    rows = [example_of(x=np.array([1]))] * 3
    for odd in (b"", b"\x18\x01"):
        chunk = chunk_of([*rows, block + odd])
        for type_ in (pa.int64(), pa.list_(pa.int64())):
            with pytest.raises(
                MalformedExampleError, match=r"part-1: record 3 is not .*it has the feature 'block/rows'"
            ):
                RowDecoder(pa.schema([("x", type_)])).decode(chunk, name="part-1")
    lists = pa.schema([("x", pa.list_(pa.int64()))])
    assert RowDecoder(lists, takes_blocks=True).decode(chunk).column(0).to_pylist() == [[1], [1], [1], [1, 2]]
    with pytest.raises(SchemaError, match="column 'block/rows' has a name that is reserved for blocks of rows"):
        RowEncoder(pa.schema([("block/rows", pa.int64())]))


def test_a_row_beyond_protobufs_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A string that says to have 2 GiB: sizes are added up before a byte is read or written.
    def stored_columns(batch: pa.RecordBatch, columns: Sequence[TableColumn]) -> list[StoredColumn]:
        return [StoredColumn(columns[0].features[0], Strings(np.empty(0, np.uint8), np.array([0, 1, 2**31 + 1])))]

    monkeypatch.setattr(row_encoder, "stored_columns", stored_columns)
    with pytest.raises(ValueNotStorableError, match="row 1 passes protobuf's limit of 2 GiB; put less into one row"):
        payloads_of(one_column(pa.string(), ["a", "b"]))


@pytest.mark.parametrize("name_bytes", [1, 90, 105, 112, 116, 120, 128, 300])
def test_scalars_of_every_size_under_names_of_every_length_are_encoded(name_bytes: int) -> None:
    # Entries pass 127 bytes, and integers take each number of bytes from 1 to 10.
    ints = [value for bits in range(63) for value in (2**bits - 1, 2**bits)] + [2**63 - 1, -1, -(2**63)]
    names = ["f" * name_bytes, "i" * name_bytes]
    floats = np.arange(len(ints), dtype=np.float32)
    batch = pa.RecordBatch.from_pydict({names[0]: pa.array(floats), names[1]: pa.array(ints)})
    expected = [
        encode_example({names[0]: floats[row : row + 1], names[1]: np.array([value], np.int64)})
        for row, value in enumerate(ints)
    ]
    assert payloads_of(batch) == expected

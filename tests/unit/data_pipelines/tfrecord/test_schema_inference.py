"""Schemas found by looking at records (T1)."""

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.tfrecord.arrow_schema import InferredSchema, RecordType, SchemaError
from mirrorspark.data_pipelines.tfrecord.examples import encode_example
from mirrorspark.data_pipelines.tfrecord.schema_inference import infer
from mirrorspark.data_pipelines.tfrecord.sequence_codec import encode_sequence_example
from mirrorspark.data_pipelines.tfrecord.table_blocks import encode_table_block
from tests.unit.data_pipelines.tfrecord.test_row_codec import chunk_of

FLOATS = np.array([1.5], np.float32)


def inferred(*rows: dict[str, Any], name: str = "part-1") -> InferredSchema:
    return infer(chunk_of([encode_example(row) for row in rows]), name=name)


def test_lists_of_at_most_one_value_become_scalars() -> None:
    found = inferred(
        {"i": np.array([1]), "il": np.array([1]), "f": FLOATS, "s": [b"a"], "b": [b"a"], "e": np.array([], np.int64)},
        {"il": np.array([1, 2]), "f": FLOATS[:0], "s": ["ü".encode()], "b": [b"\xff"], "sl": [b"x", b"y"]},
    )
    assert found.records == 2
    assert found.schema == pa.schema(
        [("b", pa.binary()), ("e", pa.int64()), ("f", pa.float32()), ("i", pa.int64()), ("il", pa.list_(pa.int64())),
         ("s", pa.string()), ("sl", pa.list_(pa.string()))]
    )  # fmt: skip


def test_files_merge_to_what_all_of_them_hold() -> None:
    first = inferred({"a": np.array([1]), "s": [b"text"]})
    second = inferred({"a": np.array([1, 2]), "s": [b"\xff"], "z": FLOATS})
    merged = pickle.loads(pickle.dumps(first)).merged(second).merged(InferredSchema(RecordType.EXAMPLE))  # noqa: S301
    assert merged.schema == pa.schema([("a", pa.list_(pa.int64())), ("s", pa.binary()), ("z", pa.float32())])
    assert merged.schema == second.merged(first).schema
    assert merged.records == 2


def test_a_feature_without_a_kind_anywhere_is_told() -> None:
    payload = b"\x0a\x07\x0a\x05\x0a\x01x\x12\x00"
    found = infer(chunk_of([payload]))
    assert found.schema == pa.schema([("x", pa.null())])
    assert found.merged(inferred({"x": FLOATS})).schema == pa.schema([("x", pa.float32())])


def test_features_of_two_kinds_are_refused_with_both_places() -> None:
    with pytest.raises(
        SchemaError,
        match="feature 'x' is of kind float_list in record 1 of part-1 and of kind int64_list in record 0 of part-1",
    ):
        inferred({"x": np.array([1])}, {"x": FLOATS})
    with pytest.raises(
        SchemaError,
        match="feature 'x' is of kind int64_list in record 0 of a and of kind float_list in record 1 of b",
    ):
        inferred({"x": np.array([1])}, name="a").merged(inferred({}, {"x": FLOATS}, name="b"))


def test_context_and_feature_lists_of_sequences_are_told_apart() -> None:
    payload = encode_sequence_example({"user": np.array([5])}, {"clicks": [np.array([1]), None], "w": [[b"a", b"b"]]})
    found = infer(chunk_of([payload]), RecordType.SEQUENCE_EXAMPLE)
    assert found.schema == pa.schema(
        [("clicks", pa.list_(pa.list_(pa.int64()))), ("user", pa.int64()), ("w", pa.list_(pa.list_(pa.string())))]
    )
    twice = encode_sequence_example({"x": np.array([5])}, {"x": [np.array([1])]})
    with pytest.raises(SchemaError, match="feature 'x' is in the context and a feature list too"):
        infer(chunk_of([twice]), RecordType.SEQUENCE_EXAMPLE)


def test_payloads_have_one_column() -> None:
    found = infer(chunk_of([b"x"]), RecordType.BYTE_ARRAY)
    assert found.schema == pa.schema([("byteArray", pa.binary())])


def test_inference_returns_the_columns_of_a_blocks_rows() -> None:
    batch = pa.RecordBatch.from_pydict(
        {"a": pa.array([1, None]), "l": [[1.0], []], "n": [[["x"]], [[]]], "s": ["u", "v"]}
    )
    found = infer(chunk_of([encode_table_block(batch)]))
    assert found.schema == pa.schema(
        [("a", pa.int64()), ("l", pa.list_(pa.float32())), ("n", pa.list_(pa.list_(pa.string()))), ("s", pa.string())]
    )


def test_thousands_of_features_and_odd_records_are_found() -> None:
    wide = encode_example({f"feature {number}": np.array([number]) for number in range(3000)})
    # The value before the key.
    odd = b"\x0a\x0c\x0a\x0a\x12\x05\x1a\x03\x0a\x01\x05\x0a\x01x"
    found = infer(chunk_of([wide, odd]))
    assert len(found.schema) == 3001
    assert found.schema.field("x").type == pa.int64()
    assert len(infer(chunk_of([])).schema) == 0

"""The SequenceExample codec against TensorFlow's own, and against damaged bytes (T1)."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError

from mirrorspark.data_pipelines.tfrecord.examples import MalformedExampleError
from mirrorspark.data_pipelines.tfrecord.sequence_codec import decode_sequence_example, encode_sequence_example

CONTEXT: dict[str, Any] = {"user": np.array([5, -1]), "name": [b"a" * 200]}
LISTS: dict[str, Any] = {
    "clicks": [np.array([1]), np.array([], np.int64), None, np.array([2, 300])],
    "scores": [np.array([0.5], np.float32)] * 40,
    "words": [[b"x", b""], [b"y"]],
    "nothing": [],
}


def tensorflow_feature(column: Any) -> tf.train.Feature:
    if column is None:
        return tf.train.Feature()
    if isinstance(column, list):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=column))
    if column.dtype == np.float32:
        return tf.train.Feature(float_list=tf.train.FloatList(value=column))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=column))


def test_bytes_equal_those_that_tensorflow_writes_and_come_back() -> None:
    message = tf.train.SequenceExample(
        context=tf.train.Features(feature={name: tensorflow_feature(column) for name, column in CONTEXT.items()}),
        feature_lists=tf.train.FeatureLists(
            feature_list={
                name: tf.train.FeatureList(feature=[tensorflow_feature(column) for column in columns])
                for name, columns in LISTS.items()
            }
        ),
    )
    payload = encode_sequence_example(CONTEXT, LISTS)
    assert payload == message.SerializeToString(deterministic=True)
    context, lists = decode_sequence_example(memoryview(payload))
    np.testing.assert_equal(context, CONTEXT)
    np.testing.assert_equal(lists, LISTS)
    context, lists = decode_sequence_example(payload, ["user"], ["words"])
    assert (list(context), list(lists)) == (["user"], ["words"])


def test_mutated_messages_are_refused_or_read_as_tensorflow_reads_them() -> None:
    generator = np.random.default_rng(6)
    seed = np.frombuffer(encode_sequence_example({"i": np.array([1, 300])}, {"w": [[b"x", b"yz"], None]}), np.uint8)
    compared = 0
    for _ in range(2000):
        content = seed.copy()
        content[generator.integers(0, content.size, 2)] = generator.integers(0, 256, 2)
        payload = content[: generator.integers(content.size // 2, 3 * content.size)].tobytes()
        try:
            context, lists = decode_sequence_example(payload)
        except MalformedExampleError:
            continue
        try:
            message = tf.train.SequenceExample.FromString(payload)
        except DecodeError:
            continue  # it looks into names that do not count
        for name, feature in message.context.feature.items():
            kind = feature.WhichOneof("kind")
            if kind is not None:
                np.testing.assert_array_equal(list(context[name]), list(getattr(feature, kind).value))
        for name, listed in message.feature_lists.feature_list.items():
            assert len(lists[name]) == len(listed.feature)
            compared += 1
    assert compared > 50


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"\x12\x05\x0a", "runs past the end"),
        (b"\x0b\x0c", "unsupported wire type"),
        (b"\x12\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "more than 10 bytes"),
        (b"\x12\x07\x0a\x05\x0a\x01\xff\x12\x00", "not UTF-8"),
        (b"\x0a\x05\x0a", "runs past the end"),
    ],
)
def test_malformed_bytes_are_refused(payload: bytes, problem: str) -> None:
    with pytest.raises(MalformedExampleError, match=f"not a tf.train.SequenceExample: .*{problem}"):
        decode_sequence_example(payload)

"""Encoding and decoding of tf.train.SequenceExample: one message at a time, from any writer.

The messages, from TensorFlow ``core/example/example.proto`` and ``feature.proto``::

    SequenceExample { Features context = 1; FeatureLists feature_lists = 2; }
    FeatureLists    { map<string, FeatureList> feature_list = 1; }    FeatureList { repeated Feature feature = 1; }
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from mirrorspark.data_pipelines.tfrecord.examples import (
    Column,
    MalformedExampleError,
    canonical_example,
    decode_example,
    encode_example,
    varint,
)
from mirrorspark.data_pipelines.tfrecord.kernels import wire_read

_MESSAGE = "tf.train.SequenceExample"
_FIXED_BYTES = {1: 8, 5: 4}

FeatureList = Sequence[Column | None]
"""The features of a list, None for one without a kind."""


def encode_sequence_example(context: Mapping[str, Column], feature_lists: Mapping[str, FeatureList]) -> bytes:
    """Return one serialized tf.train.SequenceExample, keys in sorted order.

    Args:
        context: columns; see :func:`data_pipelines.tfrecord.encode_example`.
        feature_lists: by name, the features of each list.

    Raises:
        TypeError: a column is of a type that no feature holds.
        ValueError: an array is not one-dimensional, or the message would pass protobuf's limit of 2 GiB.
    """
    entries = []
    for name in sorted(feature_lists):
        features = [b"" if column is None else _feature_of(column) for column in feature_lists[name]]
        listed = b"".join(_field(1, feature) for feature in features)
        entries.append(_field(1, _field(1, name.encode()) + _field(2, listed)))
    return encode_example(context) + _field(2, b"".join(entries))


def decode_sequence_example(
    payload: bytes | memoryview,
    context: Collection[str] | None = None,
    feature_lists: Collection[str] | None = None,
) -> tuple[dict[str, npt.NDArray[Any] | list[bytes]], dict[str, list[npt.NDArray[Any] | list[bytes] | None]]]:
    """Return the context and the feature lists of one serialized tf.train.SequenceExample.

    Args:
        payload: the serialized message.
        context: the names to decode; None for all.
        feature_lists: likewise.

    Returns:
        The context as :func:`data_pipelines.tfrecord.decode_example` returns it, without features that have no
        kind, and by name the features of each list, None for one without a kind.

    Raises:
        MalformedExampleError: ``payload`` is not a tf.train.SequenceExample.
    """
    payload = bytes(payload)
    maps: dict[int, list[bytes]] = {1: [], 2: []}
    for number, start, stop in _fields(payload, 0):
        maps.get(number, []).append(payload[start:stop])
    # In protobuf, the pieces of a message are equivalent to their concatenation.
    decoded = _decoded(_field(1, b"".join(maps[1])), context)
    listed: dict[str, list[npt.NDArray[Any] | list[bytes] | None]] = {}
    lists = b"".join(maps[2])
    for number, start, stop in _fields(lists, 0):
        if number == 1:
            name, features = _listed(lists[start:stop])
            if feature_lists is None or name in feature_lists:
                listed[name] = [_decoded(_field(1, _field(1, _field(2, one))), None).get("") for one in features]
    return decoded, listed


def canonical_sequence_example(
    payload: bytes | memoryview,
    context: Collection[str] | None = None,
    feature_lists: Collection[str] | None = None,
) -> bytes:
    """Rewrite a SequenceExample of any writer as :func:`encode_sequence_example` writes it.

    Args:
        payload: the serialized message.
        context: the names to keep; None for all.
        feature_lists: likewise.

    Raises:
        MalformedExampleError: ``payload`` is not a tf.train.SequenceExample.
    """
    return encode_sequence_example(*decode_sequence_example(payload, context, feature_lists))


def _feature_of(column: Column) -> bytes:
    """Return the Feature of a column, cut out of an Example with one entry of an empty name."""
    message = encode_example({"": column})
    start = 0
    for _ in range(2):
        _, start, _ = next(_fields(message, start))
    *_, (_, start, stop) = _fields(message, start)
    return message[start:stop]


def _listed(entry: bytes) -> tuple[str, list[bytes]]:
    """Return the name and the serialized features of a map entry of FeatureLists."""
    key = b""
    features: list[bytes] = []
    for number, start, stop in _fields(entry, 0):
        if number == 1:
            key = entry[start:stop]
        elif number == 2:
            value = entry[start:stop]
            features += [value[first:last] for inner, first, last in _fields(value, 0) if inner == 1]
    try:
        return key.decode(), features
    except UnicodeDecodeError as error:
        raise MalformedExampleError("the name of a feature list is not UTF-8", 0, message=_MESSAGE) from error


def _decoded(example: bytes, columns: Collection[str] | None) -> dict[str, npt.NDArray[Any] | list[bytes]]:
    try:
        # The rewritten message has no features without a kind.
        return decode_example(canonical_example(example, columns))
    except MalformedExampleError as error:
        raise MalformedExampleError(error.problem, error.offset, message=_MESSAGE) from error


def _field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def _fields(content: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, start and stop of each length-delimited field; others have number 0."""
    while at < len(content):
        tag, start = _varint(content, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 2:
            size, start = _varint(content, start)
            stop = start + size
        elif wire_type == 0:
            _, stop = _varint(content, start)
        elif wire_type in _FIXED_BYTES:
            stop = start + _FIXED_BYTES[wire_type]
        else:
            number = 0
        if number == 0 or number >= 2**29:
            raise MalformedExampleError(wire_read.PROBLEMS[wire_read.INVALID_TAG], at, message=_MESSAGE)
        if stop > len(content):
            raise MalformedExampleError(wire_read.PROBLEMS[wire_read.CUT_OFF], at, message=_MESSAGE)
        yield number if wire_type == 2 else 0, start, stop
        at = stop


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for step, byte in enumerate(content[at : at + 10]):
        value |= (byte & 127) << 7 * step
        if byte < 128:
            return value & 2**64 - 1, at + step + 1
    problem = wire_read.CUT_OFF if len(content) - at < 10 else wire_read.VARINT_TOO_LONG
    raise MalformedExampleError(wire_read.PROBLEMS[problem], at, message=_MESSAGE)

"""The Example codec against TensorFlow's own, and against what other writers may produce (T1)."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.tfrecord.examples import (
    MalformedExampleError,
    Strings,
    canonical_example,
    decode_example,
    decode_example_arrays,
    encode_example,
    is_example_list,
)

# Where a varint becomes a byte longer, and the ends of the range.
EDGES = sorted({sign * (2**bits + step) for bits in range(0, 63, 7) for step in (-1, 0) for sign in (1, -1)})
EXTREMES = [-(2**63), -1, 0, 2**63 - 1]

COLUMNS: dict[str, Any] = {
    "price": np.array([1.5, -0.0, np.nan, np.inf, 3e38], np.float32),
    "user_id": np.array([*EDGES, *EXTREMES], np.int64),
    "small": np.arange(128, dtype=np.int64),
    "name": [b"", b"a", b"\x00\xff", b"x" * 300, "ü".encode()],
    "no_floats": np.empty(0, np.float32),
    "no_int64s": np.empty(0, np.int64),
    "no_bytes": [],
    "größe": np.array([2.0], np.float32),
}


def tensorflow_feature(column: Any) -> tf.train.Feature:
    if isinstance(column, np.ndarray) and column.dtype == np.float32:
        return tf.train.Feature(float_list=tf.train.FloatList(value=column))
    if isinstance(column, np.ndarray) and column.dtype == np.int64:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=column))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=column))


def tensorflow_bytes(columns: Mapping[str, Any]) -> bytes:
    features = {name: tensorflow_feature(column) for name, column in columns.items()}
    message = tf.train.Example(features=tf.train.Features(feature=features))
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def tensorflow_columns(payload: bytes) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, feature in tf.train.Example.FromString(payload).features.feature.items():
        match feature.WhichOneof("kind"):
            case "float_list":
                columns[name] = np.array(feature.float_list.value, np.float32)
            case "int64_list":
                columns[name] = np.array(feature.int64_list.value, np.int64)
            case _:
                columns[name] = list(feature.bytes_list.value)
    return columns


def assert_same_columns(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        if isinstance(column, np.ndarray):
            assert found[name].dtype == column.dtype
            np.testing.assert_array_equal(found[name], column)
        else:
            assert found[name] == list(column)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def example(*entries: bytes) -> bytes:
    return field(1, b"".join(field(1, entry) for entry in entries))


def entry(name: bytes, feature: bytes) -> bytes:
    return field(1, name) + field(2, feature)


def test_message_is_the_bytes_worked_by_hand() -> None:
    # 300 is 0b10_0101100: low seven bits with the continuation bit 0xac, then 0x02.
    int64_list = b"\x0a\x03" + b"\x01\xac\x02"
    feature = b"\x1a\x05" + int64_list
    map_entry = b"\x0a\x01x" + b"\x12\x07" + feature
    assert encode_example({"x": np.array([1, 300])}) == b"\x0a\x0e" + b"\x0a\x0c" + map_entry


@pytest.mark.parametrize("columns", [COLUMNS, {}, {"": [b"v"]}, *({name: column} for name, column in COLUMNS.items())])
def test_bytes_equal_those_that_tensorflow_writes(columns: dict[str, Any]) -> None:
    assert encode_example(columns) == tensorflow_bytes(columns)


def test_a_name_comes_before_the_names_that_it_begins() -> None:
    # Protobuf's Python runtime (upb) writes these the other way round, so its bytes cannot be compared here.
    columns: dict[str, Any] = {"x/row_lengths": np.array([2, 0]), "": [b"v"], "x": np.array([7, 8])}
    payload = encode_example(columns)
    assert payload == example(
        entry(b"", field(1, field(1, b"v"))),
        entry(b"x", field(3, field(1, b"\x07\x08"))),
        entry(b"x/row_lengths", field(3, field(1, b"\x02\x00"))),
    )
    assert_same_columns(tensorflow_columns(payload), columns)


def test_random_columns_encode_as_tensorflow_does_and_come_back() -> None:
    generator = np.random.default_rng(17)
    for size in (1, 2, 130, 5000):
        columns: dict[str, Any] = {
            f"ids below 10**{digits:02}": generator.integers(0, 10**digits, size, dtype=np.int64)
            for digits in range(19)
        }
        columns["any sign"] = generator.integers(-(2**63), 2**63 - 1, size, dtype=np.int64, endpoint=True)
        columns["floats"] = generator.normal(size=size).astype(np.float32)
        columns["bytes"] = [generator.bytes(int(length)) for length in generator.integers(0, 200, size)]
        payload = encode_example(columns)
        assert payload == tensorflow_bytes(columns)
        assert_same_columns(decode_example(payload), columns)


def test_columns_come_back_from_bytes_and_from_a_memoryview() -> None:
    payload = encode_example(COLUMNS)
    assert_same_columns(decode_example(payload), COLUMNS)
    assert_same_columns(decode_example(memoryview(b"." + payload)[1:]), COLUMNS)


def test_decoded_values_are_the_callers_own() -> None:
    buffer = bytearray(encode_example({"x": np.array([1.0, 2.0], np.float32), "y": [b"abc"]}))
    decoded = decode_example(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    decoded["x"][0] = 5.0  # type: ignore[call-overload]
    assert_same_columns(decoded, {"x": np.array([5.0, 2.0], np.float32), "y": [b"abc"]})


def test_more_features_than_the_index_first_holds_come_back() -> None:
    columns: dict[str, Any] = {f"feature {number}": np.array([number, -number]) for number in range(300)}
    assert_same_columns(decode_example(encode_example(columns)), columns)


def test_tensorflow_parses_our_bytes() -> None:
    payload = encode_example({"x": np.array([1.5, 2.5], np.float32), "y": np.array([-3]), "z": [b"a", b"bc"]})
    parsed = tf.io.parse_single_example(
        payload,
        {
            "x": tf.io.FixedLenFeature([2], tf.float32),
            "y": tf.io.FixedLenFeature([1], tf.int64),
            "z": tf.io.FixedLenFeature([2], tf.string),
        },
    )
    assert parsed["x"].numpy().tolist() == [1.5, 2.5]
    assert parsed["y"].numpy().tolist() == [-3]
    assert parsed["z"].numpy().tolist() == [b"a", b"bc"]


def test_order_of_the_columns_does_not_change_the_bytes() -> None:
    assert encode_example(dict(reversed(COLUMNS.items()))) == encode_example(COLUMNS)


def test_strided_read_only_and_object_arrays_encode_by_value() -> None:
    values = np.arange(6)
    values.flags.writeable = False
    strided: dict[str, Any] = {
        "i": values[::2],
        "f": values.astype(np.float32)[::-1],
        "b": np.array([b"a", b"b\x00"], object),
    }
    plain: dict[str, Any] = {
        "i": np.array([0, 2, 4]),
        "f": np.array([5, 4, 3, 2, 1, 0], np.float32),
        "b": (b"a", b"b\x00"),
    }
    assert encode_example(strided) == encode_example(plain)
    unaligned = np.frombuffer(b"." + values.tobytes(), np.int64, offset=1)
    assert encode_example({"i": unaligned}) == encode_example({"i": values})


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (np.zeros(3), TypeError, "column 'age' has dtype float64; convert it to float32 or int64"),
        (np.zeros(3, np.int32), TypeError, "column 'age' has dtype int32"),
        (np.zeros(3, bool), TypeError, "column 'age' has dtype bool"),
        (np.zeros(3, ">i8"), TypeError, "column 'age' has dtype >i8"),
        (np.array([b"a"]), TypeError, r"column 'age' has dtype \|S1"),
        (np.zeros((2, 3), np.float32), ValueError, r"column 'age' has shape \[2, 3\]; flatten it"),
        (np.array(1), ValueError, r"column 'age' has shape \[\]; flatten it"),
        (np.array([[b"a"]], object), ValueError, r"column 'age' has shape \[1, 1\]; flatten it"),
        (b"abc", TypeError, "column 'age' is a bytes; give an array, or a list of bytes"),
        ("abc", TypeError, "column 'age' is a str"),
        (5, TypeError, "column 'age' is a int"),
        ([b"a", "b", None], TypeError, "column 'age' holds NoneType, str among its values; encode each value to bytes"),
        ([1, 2], TypeError, "column 'age' holds int among its values"),
        (np.array(["a"], object), TypeError, "column 'age' holds str among its values"),
    ],
)
def test_columns_of_other_types_are_refused_by_name(column: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_example({"id": np.array([1]), "age": column})


def test_a_message_beyond_protobufs_limit_is_refused() -> None:
    half = np.zeros(2**28, np.float32)  # 1 GiB of zero pages that nothing touches
    with pytest.raises(ValueError, match="passes protobuf's limit of 2 GiB; put fewer rows in one record"):
        encode_example({"a": half, "b": half})


def test_only_the_columns_asked_for_are_decoded() -> None:
    # The list of "b" is a varint without an end: it would fail if it were read.
    payload = example(entry(b"a", field(3, field(1, b"\x05"))), entry(b"b", field(3, field(1, b"\xff"))))
    assert_same_columns(decode_example(payload, ["a", "absent"]), {"a": np.array([5])})
    assert decode_example(payload, []) == {}
    with pytest.raises(MalformedExampleError):
        decode_example(payload, {"b"})


FLOATS = np.array([1.5, -2.0, 4.0], np.float32)
FOREIGN: dict[str, tuple[bytes, dict[str, Any]]] = {
    "int64s one field each": (example(entry(b"x", field(3, b"\x08\x05\x08\xac\x02"))), {"x": np.array([5, 300])}),
    "int64s packed and not": (
        example(entry(b"x", field(3, b"\x08\x05" + field(1, b"\x06\x07") + b"\x08\x08" + field(1, b"")))),
        {"x": np.array([5, 6, 7, 8])},
    ),
    "floats packed and not": (
        example(
            entry(b"x", field(2, b"\x0d" + FLOATS[:1].tobytes() + field(1, FLOATS[1:2].tobytes()) + b"\x0d"
            + FLOATS[2:].tobytes()))
        ),
        {"x": FLOATS},
    ),
    "a longer varint than needed": (example(entry(b"x", field(3, field(1, b"\x85\x80\x00")))), {"x": np.array([5])}),
    "value before key": (example(field(2, field(3, field(1, b"\x05"))) + field(1, b"x")), {"x": np.array([5])}),
    "no key": (example(field(2, field(1, field(1, b"v")))), {"": [b"v"]}),
    "no value": (example(field(1, b"x")), {"x": []}),
    "a feature without kind": (example(entry(b"x", b"")), {"x": []}),
    "an empty list of each kind": (
        example(entry(b"b", field(1, b"")), entry(b"f", field(2, b"")), entry(b"i", field(3, b""))),
        {"b": [], "f": np.empty(0, np.float32), "i": np.empty(0, np.int64)},
    ),
    "a name twice": (
        example(entry(b"x", field(3, field(1, b"\x05"))), entry(b"y", b""), entry(b"x", field(1, field(1, b"v")))),
        {"x": [b"v"], "y": []},
    ),
    "a list in pieces": (
        example(field(1, b"x") + field(2, field(3, field(1, b"\x05")) + field(3, field(1, b"\x06")))
        + field(2, field(3, field(1, b"\x07")))),
        {"x": np.array([5, 6, 7])},
    ),
    "two kinds": (
        example(entry(b"x", field(3, field(1, b"\x05")) + field(1, field(1, b"v")) + field(2, b""))),
        {"x": np.empty(0, np.float32)},
    ),
    "features in pieces": (example(entry(b"x", b"")) + example(entry(b"y", b"")), {"x": [], "y": []}),
    "unknown fields": (
        field(9, b"?") + b"\x18\x05"
        + field(1, b"\x25abcd" + field(1, entry(b"x", b"\x21abcdefgh" + field(4, b"?")
        + field(3, field(2, b"?") + field(1, b"\x05") + b"\x0dabcd")))),
        {"x": np.array([5])},
    ),
    "no features": (b"", {}),
}  # fmt: skip


@pytest.mark.parametrize(("payload", "expected"), FOREIGN.values(), ids=FOREIGN.keys())
def test_valid_records_of_other_writers_are_read_as_by_protobuf(payload: bytes, expected: dict[str, Any]) -> None:
    assert_same_columns(decode_example(payload), expected)
    assert_same_columns(tensorflow_columns(payload), expected)


def test_an_unknown_field_in_a_map_entry_is_skipped() -> None:
    # Protobuf's Python runtime (upb) drops such an entry whole, so it cannot be compared here.
    payload = example(field(3, b"?") + entry(b"x", field(3, field(1, b"\x05"))) + b"\x20\x01")
    assert_same_columns(decode_example(payload), {"x": np.array([5])})


MALFORMED = {
    "a varint without end": (example(entry(b"x", field(3, field(1, b"\xff")))), "runs past the end", 13),
    "a varint of 11 bytes": (
        example(entry(b"x", field(3, field(1, b"\x05" + b"\x80" * 10 + b"\x01")))),
        "a varint takes more than 10 bytes",
        14,
    ),
    "a length beyond the end": (b"\x0a\x05\x0a", "runs past the end", 0),
    "a length near 2**64": (b"\x0a" + b"\xff" * 9 + b"\x01", "runs past the end", 0),
    "a float of 3 bytes": (example(entry(b"x", field(2, field(1, b"abc")))), "not a multiple of 4", 13),
    "field number 0": (b"\x02\x00", "number 0", 0),
    "a group": (b"\x0b\x0c", "unsupported wire type", 0),
    "a name that is not text": (example(entry(b"\xff", b"")), "not UTF-8", 6),
    "a cut fixed32": (b"\x0dabc", "runs past the end", 0),
}  # fmt: skip


@pytest.mark.parametrize(("payload", "problem", "offset"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_bytes_are_refused_with_problem_and_offset(payload: bytes, problem: str, offset: int) -> None:
    with pytest.raises(MalformedExampleError, match=f"not a tf.train.Example: .*{problem}") as caught:
        decode_example(payload)
    assert caught.value.offset == offset


def test_error_survives_pickle() -> None:
    with pytest.raises(MalformedExampleError) as caught:
        decode_example(b"\x0a\x05")
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert type(copy) is MalformedExampleError
    assert str(copy) == str(caught.value)
    assert (copy.problem, copy.offset) == (caught.value.problem, caught.value.offset)


def test_byte_strings_end_to_end_are_encoded_and_decoded_as_a_list_of_them() -> None:
    strings = Strings(np.frombuffer(b"abcd", np.uint8), np.array([0, 2, 2, 4]))
    payload = encode_example({"s": strings, "x": FLOATS})
    assert payload == encode_example({"s": [b"ab", b"", b"cd"], "x": FLOATS})
    decoded = decode_example_arrays(payload)
    assert isinstance(decoded["s"], Strings)
    assert (decoded["s"].content.tobytes(), decoded["s"].offsets.tolist()) == (b"abcd", [0, 2, 2, 4])
    assert_same_columns({"x": decoded["x"]}, {"x": FLOATS})
    assert decode_example_arrays(example(entry(b"x", b"")), ["x"]) == {}


def test_error_names_file_and_record_where_they_are_known() -> None:
    error = MalformedExampleError("too short", 4, file="part-1", record=7, message="tf.train.SequenceExample")
    assert str(error) == (
        "part-1: record 7 is not a tf.train.SequenceExample: too short, at byte 4 of the payload; check that these "
        "records are SequenceExamples, and write the file again if they should be"
    )
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(copy), copy.file, copy.record) == (str(error), "part-1", 7)


@pytest.mark.parametrize(("payload", "expected"), FOREIGN.values(), ids=FOREIGN.keys())
def test_an_example_of_any_writer_is_written_anew_as_we_write_it(payload: bytes, expected: dict[str, Any]) -> None:
    kinds = {
        name: one.WhichOneof("kind") for name, one in tf.train.Example.FromString(payload).features.feature.items()
    }
    assert canonical_example(payload) == encode_example({name: expected[name] for name in expected if kinds[name]})
    assert canonical_example(payload, ["absent"]) == encode_example({})


def test_lists_of_examples_are_told_from_examples() -> None:
    inner = encode_example({"x": np.array([1]), "y": [b"v"]})
    assert is_example_list(field(1, inner) + field(1, inner) + field(2, inner))
    assert is_example_list(memoryview(field(1, encode_example({"x": np.array([1])}))))
    for payload in (inner, b"", encode_example({}), example(entry(b"x", b"")), example(field(1, b"x")), b"\x0a\x05"):
        assert not is_example_list(payload)


def test_damaged_bytes_are_refused_or_read_as_protobuf_reads_them() -> None:
    generator = np.random.default_rng(5)
    payload = encode_example({"f": FLOATS, "i": np.array([1, -1, 300]), "b": [b"v", b"w"], "e": []})
    compared = 0
    for _ in range(4000):
        content = np.frombuffer(payload, np.uint8).copy()
        changes = generator.integers(1, 4)
        content[generator.integers(0, content.size, changes)] = generator.integers(0, 256, changes)
        damaged = content[: generator.integers(content.size // 2, 4 * content.size)].tobytes()
        try:
            found = decode_example(damaged)
        except MalformedExampleError:
            continue
        expected = tensorflow_columns(damaged)
        # upb drops map entries with unknown fields; all others have to agree.
        assert_same_columns({name: column for name, column in found.items() if name in expected}, expected)
        compared += len(expected) == len(found)
    assert compared > 500


@pytest.mark.parametrize(
    "name", ["fuxictr_tiny_train.tfrecord", "deepctr_criteo_sample.tr.tfrecords", "tfx_taxi-00000-of-00002.tfrecord.gz"]
)
def test_third_party_examples_decode_as_tensorflow_decodes_them(shared_data: Path, name: str) -> None:
    path = shared_data / "tfrecords" / name
    codec = "GZIP" if path.suffix == ".gz" else ""
    payloads = list(tf.data.TFRecordDataset(str(path), codec).take(500).as_numpy_iterator())
    assert payloads
    for payload in payloads:
        assert_same_columns(decode_example(payload), tensorflow_columns(payload))

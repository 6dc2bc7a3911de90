"""The fingerprint equals TensorFlow's for every length class (F1, F5)."""

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.farmhash import fingerprint64


def buckets_of_tensorflow(strings: list[bytes], buckets: int) -> np.ndarray:
    import tensorflow as tf

    hashed: np.ndarray = tf.strings.to_hash_bucket_fast(tf.constant(strings), buckets).numpy()
    return hashed


def test_equals_tensorflow_for_every_length_up_to_300_bytes_and_some_longer() -> None:
    generator = np.random.default_rng(5)
    lengths = [*range(301), 511, 512, 513, 1000, 4096, 65_537]
    strings = [generator.bytes(length) for length in lengths for _ in range(3)]
    fingerprints = fingerprint64(pa.array(strings, pa.binary()))
    # A prime near 2**62 leaves almost all bits of the fingerprint to see.
    for buckets in (2**62 - 57, 1_000, 1):
        np.testing.assert_array_equal(fingerprints % np.uint64(buckets), buckets_of_tensorflow(strings, buckets))


def test_slices_nulls_and_large_strings_are_read_in_place() -> None:
    words = ["", "ä", "flight", "a longer string than sixteen bytes", None, "flight"]
    expected = [fingerprint64(pa.array([word or ""], pa.string()))[0] for word in words]
    for type_ in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        assert fingerprint64(pa.array(words, pa.string()).cast(type_)).tolist() == expected
        assert fingerprint64(pa.array(words, pa.string()).cast(type_)[2:5]).tolist() == expected[2:5]
    assert fingerprint64(pa.array([], pa.string())).size == 0


def test_bytes_under_a_null_do_not_count() -> None:
    hidden = pa.Array.from_buffers(
        pa.string(), 2, [pa.py_buffer(b"\x02"), pa.array([0, 3, 4], pa.int32()).buffers()[1], pa.py_buffer(b"abcd")]
    )
    assert hidden.to_pylist() == [None, "d"]
    assert fingerprint64(hidden).tolist() == fingerprint64(pa.array(["", "d"])).tolist()


def test_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="an array of int64 has no fingerprints; cast it to strings"):
        fingerprint64(pa.array([1]))

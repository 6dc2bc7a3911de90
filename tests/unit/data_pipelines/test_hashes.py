"""Hashes of rows are those of Spark (T1): the values are of its documentation, and of other programs."""

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.sources import hashes

ROW = [pa.array(["Spark"]), pa.array([[123]], pa.list_(pa.int32())), pa.array([2], pa.int32())]


def test_hashes_are_those_of_the_documentation_of_spark() -> None:
    assert hashes.xxhash64(ROW, 1).tolist() == [5602566077635097486]
    assert hashes.xxhash64([pa.array(["ABC"])], 1).tolist() == [4105715581806190027]
    # hash('Spark', array(123), 2) is -1321691492.
    assert hashes.partitions(ROW, 1, 2**31 - 1).tolist() == [-1321691492 + 2**31 - 1]


PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def xxh64(text: bytes, seed: int) -> int:
    """Return XXH64 as its specification has it, step by step."""
    first, second, third, fourth, fifth = PRIMES

    def cut(value: int) -> int:
        return value % 2**64

    def turned(value: int, bits: int) -> int:
        return cut(value << bits) | cut(value) >> (64 - bits)

    def mixed(lane: int, word: bytes) -> int:
        return cut(turned(cut(lane + int.from_bytes(word, "little") * second), 31) * first)

    whole = len(text) // 32 * 32
    if whole:
        lanes = [cut(seed + first + second), cut(seed + second), seed, cut(seed - first)]
        for start in range(0, whole, 8):
            lanes[start // 8 % 4] = mixed(lanes[start // 8 % 4], text[start : start + 8])
        found = cut(sum(turned(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)))
        for lane in lanes:
            found = cut((found ^ mixed(0, lane.to_bytes(8, "little"))) * first + fourth)
    else:
        found = seed + fifth
    found, rest = cut(found + len(text)), text[whole:]
    while len(rest) >= 8:
        found, rest = cut(turned(found ^ mixed(0, rest[:8]), 27) * first + fourth), rest[8:]
    if len(rest) >= 4:
        found, rest = (
            cut(turned(found ^ cut(int.from_bytes(rest[:4], "little") * first), 23) * second + third),
            rest[4:],
        )
    for byte in rest:
        found = cut(turned(found ^ cut(byte * fifth), 11) * first)
    found = cut((found ^ found >> 33) * second)
    found = cut((found ^ found >> 29) * third)
    return found ^ found >> 32


@pytest.mark.parametrize("size", [0, 1, 4, 7, 8, 31, 32, 33, 63, 64, 100])
def test_texts_of_any_length_are_hashed_as_xxh64(size: int) -> None:
    text = bytes(range(100, 200))[:size]
    found = hashes.xxhash64([pa.array([text], pa.binary())], 1)
    assert found.view(np.uint64).tolist() == [xxh64(text, 42)]


def test_nulls_leave_the_hash_as_it_is_and_zeros_and_nans_are_one_each() -> None:
    nothing = pa.nulls(2, pa.list_(pa.string()))
    assert hashes.xxhash64([nothing, pa.nulls(2)], 2).tolist() == [42, 42]
    other_nan = np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0]
    for pair in ([0.0, -0.0], [float("nan"), other_nan]):
        first, second = hashes.xxhash64([pa.array(pair)], 2)
        assert first == second


def test_a_slice_has_the_hashes_of_its_rows() -> None:
    columns = [
        pa.array(["a", None, "bc", ""]),
        pa.array([[1], None, [2, 3], []], pa.list_(pa.int64())),
        pa.array([True, None, False, True]),
        pa.array([1, None, -1, 10**25], pa.decimal128(38, 0)),
    ]
    whole = hashes.xxhash64(columns, 4)
    assert hashes.xxhash64([column.slice(2) for column in columns], 2).tolist() == whole[2:].tolist()
    assert len(set(whole.tolist())) == 4

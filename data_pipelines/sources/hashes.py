"""Spark's hashes of rows, computed in this process: ``xxhash64``, and that which divides rows among partitions.

Spark hashes a row column by column, with the hash so far as the seed; a null leaves it as it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_Hashes: TypeAlias = npt.NDArray[Any]

# The seed of both hashes where a query gives none.
_SEED = 42
_LONGEST_WHOLE_DECIMAL = 18

_PRIME_1, _PRIME_2, _PRIME_3, _PRIME_4, _PRIME_5 = (
    np.uint64(prime)
    for prime in (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
)


def xxhash64(columns: Iterable[pa.Array], rows: int, seed: int = _SEED) -> npt.NDArray[np.int64]:
    """Return Spark's ``xxhash64`` of each row, int64 ``[rows]``.

    Args:
        columns: The columns of the rows, in the types in which Spark sends them.
        rows: The number of rows.
        seed: The hash of a row without columns.
    """
    return _hashed(columns, np.full(rows, seed, np.uint64), _XXHASH64).view(np.int64)


def partitions(columns: Iterable[pa.Array], rows: int, count: int) -> npt.NDArray[np.int32]:
    """Return the partition of each row, int32 ``[rows]``, after Spark's ``repartition(count, *columns)``."""
    hashes = _hashed(columns, np.full(rows, _SEED, np.uint32), _MURMUR3).view(np.int32)
    return np.asarray(hashes % np.int32(count))  # Like Spark's pmod, never negative.


def _hashed(columns: Iterable[pa.Array], hashes: _Hashes, kind: "_Kind") -> _Hashes:
    for column in columns:
        hashes = _with_column(column, hashes, kind)
    return hashes


def _with_column(column: pa.Array, hashes: _Hashes, kind: "_Kind") -> _Hashes:
    """Return the hashes of rows that have one more column."""
    type_ = column.type
    if pa.types.is_null(type_):
        return hashes
    if pa.types.is_struct(type_):
        return _hashed(column.flatten(), hashes, kind)
    if pa.types.is_list(type_):
        return _with_lists(column, hashes, kind)
    found = _with_values(column, hashes, kind)
    return np.where(column.is_valid().to_numpy(zero_copy_only=False), found, hashes) if column.null_count else found


def _with_lists(column: pa.ListArray, hashes: _Hashes, kind: "_Kind") -> _Hashes:
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    elements, starts, hashes = column.flatten(), np.cumsum(lengths) - lengths, hashes.copy()
    for place in range(lengths.max(initial=0)):
        rows = np.flatnonzero(lengths > place)
        hashes[rows] = _with_column(elements.take(pa.array(starts[rows] + place)), hashes[rows], kind)
    return hashes


def _with_values(column: pa.Array, hashes: _Hashes, kind: "_Kind") -> _Hashes:
    type_ = column.type
    if any(check(type_) for check in (pa.types.is_string, pa.types.is_binary)):
        return _with_bytes(column, hashes, kind)
    if pa.types.is_decimal(type_):
        # The low and the high half of each number.
        halves = np.frombuffer(column.buffers()[1], np.int64)[2 * column.offset :][: 2 * len(column)].reshape(-1, 2)
        if type_.precision <= _LONGEST_WHOLE_DECIMAL:
            return kind.of_longs(halves[:, 0], hashes)
        return _with_bytes(pa.array(_bytes_of_numbers(halves), pa.binary()), hashes, kind)
    if pa.types.is_floating(type_):
        bits = np.int32 if type_ == pa.float32() else np.int64
        numbers = column.fill_null(0).to_numpy(zero_copy_only=False) + type_.to_pandas_dtype()(0)  # -0.0 becomes 0.0
        # Java has one NaN.
        values: Any = np.where(np.isnan(numbers), np.array(np.nan, numbers.dtype), numbers).view(bits)
        return kind.of_ints(values, hashes) if bits is np.int32 else kind.of_longs(values, hashes)
    if pa.types.is_timestamp(type_) or pa.types.is_duration(type_) or type_ == pa.int64():
        return kind.of_longs(column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), hashes)
    return kind.of_ints(column.cast(pa.int32()).fill_null(0).to_numpy(zero_copy_only=False), hashes)


def _with_bytes(column: pa.Array, hashes: _Hashes, kind: "_Kind") -> _Hashes:
    plain = column.cast(pa.large_binary())
    _, offsets, data = plain.buffers()
    starts = np.frombuffer(offsets, np.int64)[plain.offset :][: len(plain) + 1] if len(plain) else np.zeros(1, np.int64)
    return kind.of_bytes(np.frombuffer(data or b"", np.uint8), starts, hashes)


def _bytes_of_numbers(halves: npt.NDArray[np.int64]) -> list[bytes]:
    """Return numbers as Java's ``BigInteger.toByteArray`` does: the fewest bytes that hold them and their sign."""
    numbers = [(int(high) << 64) | (int(low) & 0xFFFFFFFFFFFFFFFF) for low, high in halves]
    # A negative number needs no bit more for the sign than its complement has.
    sizes = [(number if number >= 0 else ~number).bit_length() // 8 + 1 for number in numbers]
    return [number.to_bytes(size, "big", signed=True) for number, size in zip(numbers, sizes, strict=True)]


def _rotated(values: _Hashes, bits: int) -> _Hashes:
    size = values.dtype.itemsize * 8
    return (values << values.dtype.type(bits)) | (values >> values.dtype.type(size - bits))


def _finished_64(found: _Hashes) -> _Hashes:
    found = (found ^ (found >> np.uint64(33))) * _PRIME_2
    found = (found ^ (found >> np.uint64(29))) * _PRIME_3
    return found ^ (found >> np.uint64(32))


def _xxhash64_of_ints(values: npt.NDArray[np.int32], seeds: _Hashes) -> _Hashes:
    words = values.view(np.uint32).astype(np.uint64)
    found = (seeds + _PRIME_5 + np.uint64(4)) ^ (words * _PRIME_1)
    return _finished_64(_rotated(found, 23) * _PRIME_2 + _PRIME_3)


def _xxhash64_of_longs(values: npt.NDArray[np.int64], seeds: _Hashes) -> _Hashes:
    words = np.ascontiguousarray(values).view(np.uint64)
    found = (seeds + _PRIME_5 + np.uint64(8)) ^ (_rotated(words * _PRIME_2, 31) * _PRIME_1)
    return _finished_64(_rotated(found, 27) * _PRIME_1 + _PRIME_4)


def _xxhash64_of_bytes(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seeds: _Hashes) -> _Hashes:
    from mirrorspark.data_pipelines.sources.hash_kernels import xxhash64_of_bytes

    return xxhash64_of_bytes(data, offsets, np.ascontiguousarray(seeds))


def _mixed_32(found: _Hashes, words: _Hashes) -> _Hashes:
    found = found ^ (_rotated(words * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593))
    return _rotated(found, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def _finished_32(found: _Hashes, length: int) -> _Hashes:
    found = found ^ np.uint32(length)
    found = (found ^ (found >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    found = (found ^ (found >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return found ^ (found >> np.uint32(16))


def _murmur3_of_ints(values: npt.NDArray[np.int32], seeds: _Hashes) -> _Hashes:
    return _finished_32(_mixed_32(seeds, values.view(np.uint32)), 4)


def _murmur3_of_longs(values: npt.NDArray[np.int64], seeds: _Hashes) -> _Hashes:
    low, high = np.ascontiguousarray(values).view(np.uint32).reshape(-1, 2).T
    return _finished_32(_mixed_32(_mixed_32(seeds, low), high), 8)


def _murmur3_of_bytes(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seeds: _Hashes) -> _Hashes:
    from mirrorspark.data_pipelines.sources.hash_kernels import murmur3_of_bytes

    return murmur3_of_bytes(data, offsets, np.ascontiguousarray(seeds))


@dataclass(frozen=True)
class _Kind:
    """A hash function: values, then the hashes of the rows' earlier columns, to hashes."""

    of_ints: Callable[[npt.NDArray[np.int32], _Hashes], _Hashes]
    of_longs: Callable[[npt.NDArray[np.int64], _Hashes], _Hashes]
    of_bytes: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64], _Hashes], _Hashes]


# Sources: Spark's XXH64 and Murmur3_x86_32, whose hashInt and hashLong are the following.
_XXHASH64 = _Kind(_xxhash64_of_ints, _xxhash64_of_longs, _xxhash64_of_bytes)
_MURMUR3 = _Kind(_murmur3_of_ints, _murmur3_of_longs, _murmur3_of_bytes)

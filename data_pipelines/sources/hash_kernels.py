"""Kernels of Spark's hashes of texts and bytes, in which the hash of a row's earlier columns is the seed."""

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel

_OFFSETS = types.Array(types.int64, 1, "C", readonly=True)
_SEEDS = types.Array(types.uint64, 1, "C", readonly=True)
_SEEDS_32 = types.Array(types.uint32, 1, "C", readonly=True)

_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)
_LOW = np.uint64(0xFFFFFFFF)
_BYTE = np.uint64(8)


@compile_inner_kernel
def _rotated(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@compile_inner_kernel
def _word(data: npt.NDArray[np.uint8], start: int, size: int) -> np.uint64:
    word = np.uint64(0)
    for place in range(size):
        word |= np.uint64(data[start + place]) << (_BYTE * np.uint64(place))
    return word


@compile_inner_kernel
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotated(lane + word * _PRIME_2, 31) * _PRIME_1


@compile_inner_kernel
def _xxhash64(data: npt.NDArray[np.uint8], start: int, stop: int, seed: np.uint64) -> np.uint64:
    length, place = stop - start, start
    if length >= 32:
        lanes = (seed + _PRIME_1 + _PRIME_2, seed + _PRIME_2, seed, seed - _PRIME_1)
        first, second, third, fourth = lanes
        while place <= stop - 32:
            first = _round(first, _word(data, place, 8))
            second = _round(second, _word(data, place + 8, 8))
            third = _round(third, _word(data, place + 16, 8))
            fourth = _round(fourth, _word(data, place + 24, 8))
            place += 32
        found = _rotated(first, 1) + _rotated(second, 7) + _rotated(third, 12) + _rotated(fourth, 18)
        for lane in (first, second, third, fourth):
            found = (found ^ _round(np.uint64(0), lane)) * _PRIME_1 + _PRIME_4
    else:
        found = seed + _PRIME_5
    found += np.uint64(length)
    while place + 8 <= stop:
        found = _rotated(found ^ _round(np.uint64(0), _word(data, place, 8)), 27) * _PRIME_1 + _PRIME_4
        place += 8
    if place + 4 <= stop:
        found = _rotated(found ^ (_word(data, place, 4) * _PRIME_1), 23) * _PRIME_2 + _PRIME_3
        place += 4
    while place < stop:
        found = _rotated(found ^ (np.uint64(data[place]) * _PRIME_5), 11) * _PRIME_1
        place += 1
    found = (found ^ (found >> np.uint64(33))) * _PRIME_2
    found = (found ^ (found >> np.uint64(29))) * _PRIME_3
    return found ^ (found >> np.uint64(32))


@compile_kernel(types.uint64[::1](READ_ONLY_BYTES, _OFFSETS, _SEEDS))
def xxhash64_of_bytes(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seeds: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Return the XXH64 of each row's bytes with the row's seed.

    Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, as Spark's ``XXH64.hashUnsafeBytes``.
    """
    hashes = np.empty(seeds.size, np.uint64)
    for row in range(seeds.size):
        hashes[row] = _xxhash64(data, offsets[row], offsets[row + 1], seeds[row])
    return hashes


@compile_inner_kernel
def _mixed_32(found: np.uint64, word: np.uint64) -> np.uint64:
    word = (word * np.uint64(0xCC9E2D51)) & _LOW
    word = ((word << np.uint64(15)) | (word >> np.uint64(17))) & _LOW
    found ^= (word * np.uint64(0x1B873593)) & _LOW
    found = ((found << np.uint64(13)) | (found >> np.uint64(19))) & _LOW
    return (found * np.uint64(5) + np.uint64(0xE6546B64)) & _LOW


@compile_kernel(types.uint32[::1](READ_ONLY_BYTES, _OFFSETS, _SEEDS_32))
def murmur3_of_bytes(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seeds: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    """Return Spark's Murmur3 of each row's bytes with the row's seed.

    Source: Spark's ``Murmur3_x86_32.hashUnsafeBytes``, which mixes each byte after the last whole word like a word.
    """
    hashes = np.empty(seeds.size, np.uint32)
    for row in range(seeds.size):
        place, stop = offsets[row], offsets[row + 1]
        found, length = np.uint64(seeds[row]), np.uint64(stop - place)
        while place + 4 <= stop:
            found = _mixed_32(found, _word(data, place, 4))
            place += 4
        while place < stop:
            # A byte of Java has a sign.
            found = _mixed_32(found, np.uint64(np.int8(data[place])) & _LOW)
            place += 1
        found ^= length
        found = ((found ^ (found >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & _LOW
        found = ((found ^ (found >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & _LOW
        hashes[row] = np.uint32(found ^ (found >> np.uint64(16)))
    return hashes

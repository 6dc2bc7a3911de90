"""FarmHash's 64-bit fingerprint of strings, which TensorFlow's ``tf.strings.to_hash_bucket_fast`` builds on.

Importing this module loads Numba, so callers import it where they hash.

Source: FarmHash 1.1, ``farmhash.cc`` (namespace ``farmhashna``, ``Hash64``), whose result never changes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel

# FarmHash's own names: some primes between 2**63 and 2**64.
_K0 = np.uint64(0xC3A5C85C97CB3127)
_K1 = np.uint64(0xB492B66FBE98F273)
_K2 = np.uint64(0x9AE16A3B2F90404F)
_SEED = np.uint64(81)

_EMPTY_FINGERPRINT = _K2
"""The fingerprint of the empty string."""


def fingerprint64(strings: pa.Array) -> npt.NDArray[np.uint64]:
    """Return the fingerprint of each string, uint64 ``[strings]``; a null has that of the empty string.

    Args:
        strings: an Arrow array of strings or bytes, including large ones; its memory is read in place.
    """
    is_large = pa.types.is_large_string(strings.type) or pa.types.is_large_binary(strings.type)
    if not (is_large or pa.types.is_string(strings.type) or pa.types.is_binary(strings.type)):
        raise TypeError(f"an array of {strings.type} has no fingerprints; cast it to strings")
    if not len(strings):
        return np.empty(0, np.uint64)
    _, offset_buffer, content_buffer = strings.buffers()
    all_offsets = np.frombuffer(offset_buffer, np.int64 if is_large else np.int32)
    offsets = all_offsets[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    content = np.frombuffer(content_buffer, np.uint8) if content_buffer else np.empty(0, np.uint8)
    found: npt.NDArray[np.uint64] = _fingerprints(content, offsets)
    if strings.null_count:
        # The content under a null is undefined; it may not be empty.
        found[np.asarray(strings.is_null(), bool)] = _EMPTY_FINGERPRINT
    return found


@compile_inner_kernel
def _fetch64(content: npt.NDArray[np.uint8], at: int) -> Any:
    # LLVM turns this unrolled form into one unaligned 8-byte load, but not a loop.
    return (
        np.uint64(content[at])
        | np.uint64(content[at + 1]) << np.uint64(8)
        | np.uint64(content[at + 2]) << np.uint64(16)
        | np.uint64(content[at + 3]) << np.uint64(24)
        | np.uint64(content[at + 4]) << np.uint64(32)
        | np.uint64(content[at + 5]) << np.uint64(40)
        | np.uint64(content[at + 6]) << np.uint64(48)
        | np.uint64(content[at + 7]) << np.uint64(56)
    )


@compile_inner_kernel
def _fetch32(content: npt.NDArray[np.uint8], at: int) -> Any:
    return (
        np.uint64(content[at])
        | np.uint64(content[at + 1]) << np.uint64(8)
        | np.uint64(content[at + 2]) << np.uint64(16)
        | np.uint64(content[at + 3]) << np.uint64(24)
    )


@compile_inner_kernel
def _rotate(value: np.uint64, bits: int) -> Any:
    return (value >> np.uint64(bits)) | (value << np.uint64(64 - bits))


@compile_inner_kernel
def _shift_mix(value: np.uint64) -> Any:
    return value ^ (value >> np.uint64(47))


@compile_inner_kernel
def _hash_16(low: np.uint64, high: np.uint64, factor: np.uint64) -> Any:
    mixed = _shift_mix((low ^ high) * factor)
    return _shift_mix((high ^ mixed) * factor) * factor


@compile_inner_kernel
def _hash_to_16(content: npt.NDArray[np.uint8], at: int, size: int) -> Any:
    length = np.uint64(size)
    factor = _K2 + length * np.uint64(2)
    if size >= 8:
        first = _fetch64(content, at) + _K2
        last = _fetch64(content, at + size - 8)
        return _hash_16(_rotate(last, 37) * factor + first, (_rotate(first, 25) + last) * factor, factor)
    if size >= 4:
        return _hash_16(length + (_fetch32(content, at) << np.uint64(3)), _fetch32(content, at + size - 4), factor)
    if size > 0:
        low = np.uint64(content[at]) + (np.uint64(content[at + size // 2]) << np.uint64(8))
        high = length + (np.uint64(content[at + size - 1]) << np.uint64(2))
        return _shift_mix(low * _K2 ^ high * _K0) * _K2
    return _K2


@compile_inner_kernel
def _hash_17_to_32(content: npt.NDArray[np.uint8], at: int, size: int) -> Any:
    factor = _K2 + np.uint64(size) * np.uint64(2)
    a = _fetch64(content, at) * _K1
    b = _fetch64(content, at + 8)
    c = _fetch64(content, at + size - 8) * factor
    d = _fetch64(content, at + size - 16) * _K2
    return _hash_16(_rotate(a + b, 43) + _rotate(c, 30) + d, a + _rotate(b + _K2, 18) + c, factor)


@compile_inner_kernel
def _hash_33_to_64(content: npt.NDArray[np.uint8], at: int, size: int) -> Any:
    factor = _K2 + np.uint64(size) * np.uint64(2)
    a = _fetch64(content, at) * _K2
    b = _fetch64(content, at + 8)
    c = _fetch64(content, at + size - 8) * factor
    d = _fetch64(content, at + size - 16) * _K2
    y = _rotate(a + b, 43) + _rotate(c, 30) + d
    z = _hash_16(y, a + _rotate(b + _K2, 18) + c, factor)
    e = _fetch64(content, at + 16) * factor
    f = _fetch64(content, at + 24)
    g = (y + _fetch64(content, at + size - 32)) * factor
    h = (z + _fetch64(content, at + size - 24)) * factor
    return _hash_16(_rotate(e + f, 43) + _rotate(g, 30) + h, e + _rotate(f + a, 18) + g, factor)


@compile_inner_kernel
def _weak_hash_32(content: npt.NDArray[np.uint8], at: int, a: np.uint64, b: np.uint64) -> Any:
    w = _fetch64(content, at)
    x = _fetch64(content, at + 8)
    y = _fetch64(content, at + 16)
    z = _fetch64(content, at + 24)
    a += w
    b = _rotate(b + a + z, 21)
    c = a
    a += x + y
    b += _rotate(a, 44)
    return a + z, b + c


@compile_inner_kernel
def _round(
    content: npt.NDArray[np.uint8], at: int, state: Any, factor: np.uint64, w_times: np.uint64, v_times: np.uint64
) -> Any:
    """Mix 64 bytes into ``state``; the last round uses other multiples of two of its words."""
    x, y, z, v0, v1, w0, w1 = state
    x = _rotate(x + y + v0 + _fetch64(content, at + 8), 37) * factor
    y = _rotate(y + v1 + _fetch64(content, at + 48), 42) * factor
    x ^= w1 * w_times
    y += v0 * v_times + _fetch64(content, at + 40)
    z = _rotate(z + w0, 33) * factor
    v0, v1 = _weak_hash_32(content, at, v1 * factor, x + w0)
    w0, w1 = _weak_hash_32(content, at + 32, z + w1, y + _fetch64(content, at + 16))
    return z, y, x, v0, v1, w0, w1


@compile_inner_kernel
def _hash_long(content: npt.NDArray[np.uint8], at: int, size: int) -> Any:
    y = _SEED * _K1 + np.uint64(113)
    z = _shift_mix(y * _K2 + np.uint64(113)) * _K2
    x = _SEED * _K2 + _fetch64(content, at)
    zero, one, nine = np.uint64(0), np.uint64(1), np.uint64(9)
    state = (x, y, z, zero, zero, zero, zero)
    rest = (size - 1) % 64
    end = at + (size - 1) // 64 * 64
    while at != end:
        state = _round(content, at, state, _K1, one, one)
        at += 64
    x, y, z, v0, v1, w0, w1 = state
    factor = _K1 + ((z & np.uint64(0xFF)) << one)
    w0 += np.uint64(rest)
    v0 += w0
    w0 += v0
    x, y, z, v0, v1, w0, w1 = _round(content, end + rest - 63, (x, y, z, v0, v1, w0, w1), factor, nine, nine)
    return _hash_16(
        _hash_16(v0, w0, factor) + _shift_mix(y) * _K0 + z,
        _hash_16(v1, w1, factor) + x,
        factor,
    )


@compile_kernel(types.uint64[::1](READ_ONLY_BYTES, types.Array(types.int64, 1, "C", readonly=True)))
def _fingerprints(content: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return the fingerprint of ``content[offsets[i] : offsets[i + 1]]`` for each ``i``."""
    fingerprints = np.empty(offsets.size - 1, np.uint64)
    for index in range(offsets.size - 1):
        at = offsets[index]
        size = offsets[index + 1] - at
        if size <= 16:
            fingerprints[index] = _hash_to_16(content, at, size)
        elif size <= 32:
            fingerprints[index] = _hash_17_to_32(content, at, size)
        elif size <= 64:
            fingerprints[index] = _hash_33_to_64(content, at, size)
        else:
            fingerprints[index] = _hash_long(content, at, size)
    return fingerprints

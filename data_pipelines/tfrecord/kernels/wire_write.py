"""Inner kernels that write the wire format of protobuf messages and the frame of a record.

After a change here, ``tools/caches.sh`` compiles the kernels that call them again.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from mirrorspark.data_pipelines.kernels import compile_inner_kernel
from mirrorspark.data_pipelines.tfrecord.checksums import masked_crc32c_of_span
from mirrorspark.data_pipelines.tfrecord.kernels.wire_read import word_at
from mirrorspark.data_pipelines.tfrecord.records import HEADER_BYTES

SLACK_BYTES = 8
"""Spare bytes at the end of ``heads`` and ``strings``: copies move words of eight bytes."""


@compile_inner_kernel
def varint_bytes(value: int) -> int:
    """Return the bytes that a non-negative number takes as a varint."""
    size = 1
    while value >= 128:
        value >>= 7
        size += 1
    return size


@compile_inner_kernel
def put_varint(content: npt.NDArray[np.uint8], at: int, value: int) -> int:
    """Write a non-negative number at ``at``; return where it ends."""
    while value >= 128:
        content[np.uintp(at)] = np.uint8(value & 127 | 128)
        value >>= 7
        at += 1
    content[np.uintp(at)] = np.uint8(value)
    return at + 1


@compile_inner_kernel
def put_int64(content: npt.NDArray[np.uint8], at: int, signed: int) -> int:
    """Write any int64 at ``at``, negative ones in ten bytes; return where it ends."""
    value = np.uint64(signed)
    while value >= np.uint64(128):
        content[np.uintp(at)] = np.uint8(value & np.uint64(127) | np.uint64(128))
        value >>= np.uint64(7)
        at += 1
    content[np.uintp(at)] = np.uint8(value)
    return at + 1


@compile_inner_kernel
def put_sized_int64(content: npt.NDArray[np.uint8], at: int, signed: int, size: Any) -> int:
    """Write an int64 of known size as :func:`put_int64` does, and up to seven bytes beyond it."""
    if size > 8:
        return put_int64(content, at, signed)
    # All groups of seven bits move to their bytes at once, without branches to mispredict.
    word = np.uint64(signed)
    word = (word & np.uint64(0x00FFFFFFF0000000)) << np.uint64(4) | word & np.uint64(0x000000000FFFFFFF)
    word = (word & np.uint64(0x0FFFC0000FFFC000)) << np.uint64(2) | word & np.uint64(0x00003FFF00003FFF)
    word = (word & np.uint64(0x3F803F803F803F80)) << np.uint64(1) | word & np.uint64(0x007F007F007F007F)
    before_last = (np.uint64(1) << np.uint64(8 * (size - 1))) - np.uint64(1)
    put_word(content, at, word | before_last & np.uint64(0x8080808080808080))
    return at + size


@compile_inner_kernel
def put_uint32(content: npt.NDArray[np.uint8], at: int, value: np.uint32) -> int:
    """Write four bytes, lowest first; return where they end."""
    # Unsigned indices do not wrap around, so that LLVM makes one store of the four.
    place = np.uintp(at)
    content[place] = np.uint8(value)
    content[place + np.uintp(1)] = np.uint8(value >> np.uint32(8))
    content[place + np.uintp(2)] = np.uint8(value >> np.uint32(16))
    content[place + np.uintp(3)] = np.uint8(value >> np.uint32(24))
    return at + 4


@compile_inner_kernel
def put_word(content: npt.NDArray[np.uint8], at: int, word: np.uint64) -> None:
    """Write eight bytes, lowest first."""
    place = np.uintp(at)
    content[place] = np.uint8(word)
    content[place + np.uintp(1)] = np.uint8(word >> np.uint64(8))
    content[place + np.uintp(2)] = np.uint8(word >> np.uint64(16))
    content[place + np.uintp(3)] = np.uint8(word >> np.uint64(24))
    content[place + np.uintp(4)] = np.uint8(word >> np.uint64(32))
    content[place + np.uintp(5)] = np.uint8(word >> np.uint64(40))
    content[place + np.uintp(6)] = np.uint8(word >> np.uint64(48))
    content[place + np.uintp(7)] = np.uint8(word >> np.uint64(56))


@compile_inner_kernel
def copy_words(source: npt.NDArray[np.uint8], start: int, stop: int, target: npt.NDArray[np.uint8], at: int) -> int:
    """Write ``source[start:stop]`` at ``at`` in words of eight bytes; return where it ends.

    Up to seven bytes beyond are read and written: both arrays have slack, and the bytes that follow are written later.
    """
    for step in range(0, stop - start, 8):
        put_word(target, at + step, word_at(source, np.uintp(start + step)))
    return at + stop - start


@compile_inner_kernel
def put_frame(content: npt.NDArray[np.uint8], start: int, stop: int) -> None:
    """Write the header at ``start`` and the footer at ``stop`` of a record whose payload is between them."""
    payload = stop - start - HEADER_BYTES
    put_uint32(content, start, np.uint32(payload))
    put_uint32(content, start + 4, np.uint32(payload >> 32))
    put_uint32(content, start + 8, masked_crc32c_of_span(content, start, start + 8))
    put_uint32(content, stop, masked_crc32c_of_span(content, start + HEADER_BYTES, stop))

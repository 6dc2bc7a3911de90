"""The CRC-32C kernel against published vectors, its plain twin, and pieces joined (T1)."""

import numpy as np
import numpy.typing as npt
import pytest

from mirrorspark.data_pipelines.kernels import compile_inner_kernel
from mirrorspark.data_pipelines.tfrecord.checksums import (
    combine_crc32c,
    crc32c,
    crc32c_of_span,
    masked_crc32c,
)

# RFC 3720, appendix B.4; the last one is the check value of the Rocksoft model's catalogue.
VECTORS = {
    "32 zero bytes": (bytes(32), 0x8A9136AA),
    "32 bytes of ones": (b"\xff" * 32, 0x62A8AB43),
    "32 rising bytes": (bytes(range(32)), 0x46DD794E),
    "32 falling bytes": (bytes(range(31, -1, -1)), 0x113FDB5C),
    "an iSCSI read command": (
        bytes.fromhex(
            "01c00000 00000000 00000000 00000000 14000000 0000040000000014 00000018 28000000 00000000 02000000 00000000"
        ),
        0xD9963A56,
    ),
    "nothing": (b"", 0),
    "the digits 1 to 9": (b"123456789", 0xE3069283),
}


def crc32c_plain(data: bytes, initial: int = 0) -> int:
    """Return the checksum, computed bit by bit from the definition."""
    crc = initial ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(("data", "expected"), VECTORS.values(), ids=VECTORS.keys())
def test_kernel_and_twin_give_the_published_checksums(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert crc32c_plain(data) == expected


def test_mask_rotates_right_by_15_bits_and_adds_the_constant() -> None:
    # 0xe3069283 rotated right by 15 is 0x2507c60d; plus 0xa282ead8 is 0xc78ab0e5.
    assert masked_crc32c(b"123456789") == 0xC78AB0E5


def test_mask_stays_within_32_bits() -> None:
    # 0x8a9136aa rotated right by 15 is 0x6d551522; plus 0xa282ead8 is 0x10fd7fffa, which loses its first digit.
    assert masked_crc32c(bytes(32)) == 0x0FD7FFFA


# Around the 8 bytes of one step, and the three blocks of 64 or 256 bytes that run side by side.
@pytest.mark.parametrize(
    "size", [*range(34), *range(190, 202), 383, 384, 385, 575, *range(766, 778), 959, 960, 1536, 30_011]
)
def test_kernel_agrees_with_its_twin_on_random_bytes(size: int) -> None:
    generator = np.random.default_rng(size)
    data = generator.bytes(size)
    initial = int(generator.integers(2**32))
    assert crc32c(data) == crc32c_plain(data)
    assert crc32c(data, initial) == crc32c_plain(data, initial)


@pytest.mark.parametrize("split", [0, 1, 7, 8, 4096, 20_000])
def test_checksum_of_pieces_equals_that_of_the_whole(split: int) -> None:
    data = np.random.default_rng(3).bytes(20_000)
    assert crc32c(data[split:], initial=crc32c(data[:split])) == crc32c(data)


@pytest.mark.parametrize("split", [0, 1, 7, 8, 4096, 19_999, 20_000])
def test_checksums_of_two_texts_combine_to_that_of_both_joined(split: int) -> None:
    data = np.random.default_rng(4).bytes(20_000)
    assert combine_crc32c(crc32c(data[:split]), crc32c(data[split:]), 20_000 - split) == crc32c(data)


def test_any_contiguous_bytes_like_object_is_read_in_place() -> None:
    array = np.frombuffer(b"0123456789", np.uint8)
    for data in (bytearray(b"123456789"), memoryview(b"0123456789")[1:], array[1:], array.copy()[1:]):
        assert crc32c(data) == 0xE3069283
    # Of wider items the bytes in memory count.
    assert crc32c(np.zeros(4, np.int64)) == 0x8A9136AA


def test_strided_data_and_text_are_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        crc32c(np.zeros(10, np.uint8)[::2])
    with pytest.raises(TypeError, match="bytes-like"):
        crc32c("123456789")  # type: ignore[arg-type]


def test_other_kernels_can_sum_a_span_of_their_own_buffer() -> None:
    @compile_inner_kernel
    def checksum_of_middle(content: npt.NDArray[np.uint8]) -> np.uint32:
        return crc32c_of_span(content, 2, 11, 0)

    assert checksum_of_middle(np.frombuffer(b"..123456789..", np.uint8).copy()) == 0xE3069283

"""TFRecord framing against TensorFlow's own, and what damaged files lead to (T1)."""

import gzip
import io
import mmap
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from data_pipelines.crc32c import crc32c, crc32c_plain
from data_pipelines.records import (
    RECORD_OVERHEAD_BYTES,
    Damage,
    DamagedRecordError,
    RecordWriter,
    read_record_at,
    read_record_stream,
    read_records,
)

PAYLOADS = [b"first", b"", b"the third record\x00\xff"]


def framed(payloads: list[bytes]) -> bytes:
    file = io.BytesIO()
    writer = RecordWriter(file)
    for payload in payloads:
        writer.write(payload)
    return file.getvalue()


def read_in_place(content: bytes, name: str = "") -> Iterator[bytes]:
    offset = 0
    while offset < len(content):
        payload = read_record_at(memoryview(content), offset, name=name)
        yield bytes(payload)
        offset += len(payload) + RECORD_OVERHEAD_BYTES


def read_stream(content: bytes) -> Iterator[bytes]:
    return read_record_stream(io.BytesIO(content))


READERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {"streamed": read_stream, "in place": read_in_place}


@pytest.fixture(params=list(READERS.values()), ids=list(READERS))
def reader(request: pytest.FixtureRequest) -> Callable[[bytes], Iterator[bytes]]:
    chosen: Callable[[bytes], Iterator[bytes]] = request.param
    return chosen


def read_until_damaged(records: Iterator[bytes]) -> tuple[list[bytes], DamagedRecordError | None]:
    found = []
    try:
        for payload in records:
            found.append(payload)
    except DamagedRecordError as error:
        return found, error
    return found, None


def test_an_empty_record_is_framed_as_worked_by_hand() -> None:
    # Length 0 in eight bytes; CRC-32C 0x8c28b28a of eight zero bytes, masked 0x07980329; CRC-32C 0 of nothing, masked
    # 0xa282ead8; all lowest byte first.
    assert crc32c_plain(bytes(8)) == 0x8C28B28A
    assert framed([b""]) == bytes(8) + bytes.fromhex("29039807") + bytes.fromhex("d8ea82a2")


def test_files_are_equal_to_those_that_tensorflow_writes(tmp_path: Path) -> None:
    payloads = [*PAYLOADS, np.random.default_rng(0).bytes(100_000)]
    path = tmp_path / "tensorflow.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    assert path.read_bytes() == framed(payloads)
    assert list(read_records(path)) == payloads


def test_tensorflow_reads_our_files(tmp_path: Path) -> None:
    path = tmp_path / "ours.tfrecord"
    path.write_bytes(framed(PAYLOADS))
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(path))] == PAYLOADS


def test_writer_tells_offsets_counts_and_the_checksum_of_all_bytes() -> None:
    file = io.BytesIO()
    writer = RecordWriter(file)
    assert (writer.bytes_written, writer.records_written, writer.file_crc32c) == (0, 0, 0)
    # Framing takes 16 bytes: 16 + 5 = 21, and 21 + 16 + 0 = 37.
    assert [writer.write(payload) for payload in PAYLOADS] == [0, 21, 37]
    assert writer.bytes_written == len(file.getvalue()) == 37 + 16 + 18
    assert writer.records_written == 3
    assert writer.file_crc32c == crc32c(file.getvalue())


def test_a_record_that_the_disk_refuses_is_not_counted() -> None:
    class FullDisk(io.BytesIO):
        def write(self, content: object, /) -> int:
            if self.tell() > 30:
                raise OSError(28, "No space left on device")
            return super().write(content)  # type: ignore[arg-type]

    file = FullDisk()
    writer = RecordWriter(file)
    writer.write(b"first")
    with pytest.raises(OSError, match="No space left"):
        writer.write(b"second")
    assert (writer.bytes_written, writer.records_written) == (21, 1)
    assert writer.file_crc32c == crc32c(file.getvalue()[:21])


def test_a_record_is_read_from_a_memory_map_without_copying(tmp_path: Path) -> None:
    path = tmp_path / "shard.tfrecord"
    path.write_bytes(framed(PAYLOADS))
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as shard,
        memoryview(shard) as buffer,
        read_record_at(buffer, 37) as payload,
    ):
        assert bytes(payload) == PAYLOADS[2]
        assert payload.obj is shard


def test_a_file_cut_at_any_byte_gives_the_records_before_the_cut(reader: Callable[[bytes], Iterator[bytes]]) -> None:
    content = framed(PAYLOADS)
    ends = [21, 37, 71]
    for size in range(len(content)):
        found, error = read_until_damaged(reader(content[:size]))
        whole = sum(end <= size for end in ends)
        assert found == PAYLOADS[:whole]
        start = ([0, *ends])[whole]
        if size == start:
            assert error is None  # cut between two records: framing cannot tell, the manifest can
        else:
            assert error is not None
            assert error.offset == start
            assert error.found is (Damage.TRUNCATED_HEADER if size - start < 12 else Damage.TRUNCATED_PAYLOAD)


def test_no_flipped_bit_gives_a_wrong_record(reader: Callable[[bytes], Iterator[bytes]]) -> None:
    content = framed(PAYLOADS)
    starts = [0, 21, 37]
    for position in range(len(content)):
        record = sum(start <= position for start in starts) - 1
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            found, error = read_until_damaged(reader(bytes(damaged)))
            assert found == PAYLOADS[:record]
            assert error is not None
            assert error.offset == starts[record]
            in_header = position - starts[record] < 12
            assert error.found is (Damage.LENGTH_CHECKSUM if in_header else Damage.PAYLOAD_CHECKSUM)


@pytest.mark.parametrize("position", [4, 7])
def test_an_unverified_length_beyond_the_file_is_a_truncated_payload(position: int) -> None:
    damaged = bytearray(framed(PAYLOADS))
    damaged[position] = 0xFF  # a length of more than 10**12, or near 2**64
    for records in (
        read_record_stream(io.BytesIO(damaged), verify_checksums=False),
        (bytes(read_record_at(memoryview(damaged), 0, verify_checksums=False)) for _ in range(1)),
    ):
        found, error = read_until_damaged(records)
        assert found == []
        assert error is not None
        assert error.found is Damage.TRUNCATED_PAYLOAD


def test_checksums_are_not_compared_when_told_so() -> None:
    damaged = bytearray(framed([b"payload"]))
    damaged[12] = ord("P")
    assert list(read_record_stream(io.BytesIO(damaged), verify_checksums=False)) == [b"Payload"]
    assert bytes(read_record_at(memoryview(damaged), 0, verify_checksums=False)) == b"Payload"


def test_error_names_file_offset_finding_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "part-00003.tfrecord"
    path.write_bytes(framed(PAYLOADS)[:-1])
    with pytest.raises(DamagedRecordError) as caught:
        list(read_records(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: truncated payload in the record at byte 37 (21 of 22 bytes after the header)")
    assert message.endswith("the records before it are intact; write the file again from its source")
    with pytest.raises(DamagedRecordError, match=r"^shard 7: truncated payload in the record at byte 37 "):
        list(read_in_place(path.read_bytes(), name="shard 7"))


def test_error_survives_pickle() -> None:
    error = DamagedRecordError(Damage.PAYLOAD_CHECKSUM, 37, file="part-00003", detail="stored 1, computed 2")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is DamagedRecordError
    assert str(copy) == str(error)
    assert (copy.found, copy.offset, copy.file, copy.detail) == (error.found, error.offset, error.file, error.detail)


def test_reading_a_compressed_file_as_plain_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "shard.tfrecord.gz"
    path.write_bytes(gzip.compress(framed(PAYLOADS)))
    with pytest.raises(DamagedRecordError, match="check that it is a TFRecord file and not compressed"):
        list(read_records(path))
    # The advice works: opened as what it is, the file reads.
    with gzip.open(path) as file:
        assert list(read_record_stream(file)) == PAYLOADS


def test_a_damaged_compressed_stream_is_a_damaged_record() -> None:
    compressed = gzip.compress(framed([np.random.default_rng(0).bytes(1000)] * 3))
    flipped = bytearray(compressed)
    flipped[-6] ^= 1  # in the checksum of the whole
    for damaged in (compressed[:500], bytes(flipped)):
        with gzip.open(io.BytesIO(damaged)) as file:
            _, error = read_until_damaged(read_record_stream(file, name="shard"))
        assert error is not None
        assert error.found is Damage.COMPRESSED_STREAM


def test_an_empty_file_holds_no_records(tmp_path: Path) -> None:
    path = tmp_path / "empty.tfrecord"
    path.touch()
    assert list(read_records(path)) == []


def test_a_negative_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="offset -1 of a record is negative"):
        read_record_at(memoryview(framed(PAYLOADS)), -1)


@pytest.mark.parametrize(
    "name", ["fuxictr_tiny_train.tfrecord", "deepctr_criteo_sample.tr.tfrecords", "tfx_taxi-00000-of-00002.tfrecord.gz"]
)
def test_third_party_files_read_as_tensorflow_reads_them(shared_data: Path, name: str) -> None:
    path = shared_data / "tfrecords" / name
    compression = "GZIP" if path.suffix == ".gz" else ""
    expected = list(tf.data.TFRecordDataset(str(path), compression_type=compression).as_numpy_iterator())
    assert expected
    content = gzip.decompress(path.read_bytes()) if compression else path.read_bytes()
    assert list(read_record_stream(io.BytesIO(content))) == expected
    assert list(read_in_place(content)) == expected

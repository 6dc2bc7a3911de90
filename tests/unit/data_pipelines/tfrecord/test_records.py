"""TFRecord framing against TensorFlow's own, and what damaged files lead to (T1)."""

import bz2
import gzip
import io
import mmap
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.tfrecord.checksums import crc32c
from mirrorspark.data_pipelines.tfrecord.codecs import CODEC_SUFFIX, CodecError, compressed, open_records
from mirrorspark.data_pipelines.tfrecord.record_scan import RecordScan, scan_records
from mirrorspark.data_pipelines.tfrecord.records import (
    RECORD_OVERHEAD_BYTES,
    BinaryReader,
    Damage,
    DamagedRecordError,
    RecordWriter,
    read_record_at,
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


def payloads_of(scan: RecordScan) -> Iterator[bytes]:
    for chunk in scan:
        for start, stop in zip(chunk.starts, chunk.stops, strict=True):
            yield chunk.content[start:stop].tobytes()


def scan(content: bytes, name: str = "") -> Iterator[bytes]:
    return payloads_of(scan_records(io.BytesIO(content), name=name))


def scan_in_small_chunks(content: bytes) -> Iterator[bytes]:
    return payloads_of(scan_records(io.BytesIO(content), chunk_bytes=7))


READERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "in place": read_in_place,
    "scanned": scan,
    "scanned in small chunks": scan_in_small_chunks,
}


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
    assert crc32c(bytes(8)) == 0x8C28B28A
    assert framed([b""]) == bytes(8) + bytes.fromhex("29039807") + bytes.fromhex("d8ea82a2")


def test_files_are_equal_to_those_that_tensorflow_writes(tmp_path: Path) -> None:
    payloads = [*PAYLOADS, np.random.default_rng(0).bytes(100_000)]
    path = tmp_path / "tensorflow.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    assert path.read_bytes() == framed(payloads)
    assert list(scan(path.read_bytes())) == payloads


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
            assert error is None  # cut between two records: framing cannot detect it, the manifest can
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


def test_checksums_are_not_compared_when_told_so() -> None:
    damaged = bytearray(framed([b"payload"]))
    damaged[12] = ord("P")
    assert list(payloads_of(scan_records(io.BytesIO(damaged), verify_checksums=False))) == [b"Payload"]


def test_error_names_file_offset_finding_and_remedy() -> None:
    content = framed(PAYLOADS)[:-1]
    with pytest.raises(DamagedRecordError) as caught:
        list(scan(content, name="part-00003"))
    message = str(caught.value)
    assert message.startswith("part-00003: truncated payload in record 2 at byte 37 (21 of 22 bytes after the header)")
    assert message.endswith("the records before it are intact; write the file again from its source")
    with pytest.raises(DamagedRecordError, match=r"^shard 7: truncated payload in the record at byte 37 "):
        list(read_in_place(content, name="shard 7"))


def test_error_survives_pickle() -> None:
    error = DamagedRecordError(Damage.PAYLOAD_CHECKSUM, 37, file="part-00003", detail="stored 1, computed 2", record=4)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is DamagedRecordError
    assert str(copy) == str(error)
    assert (copy.found, copy.offset, copy.file, copy.detail) == (error.found, error.offset, error.file, error.detail)
    assert copy.record == error.record == 4
    assert "in record 4 at byte 37" in str(copy)


def test_reading_a_compressed_file_as_plain_one_says_so() -> None:
    content = gzip.compress(framed(PAYLOADS))
    with pytest.raises(DamagedRecordError, match="check that it is a TFRecord file and not compressed"):
        list(scan(content))
    # The advice works: opened as what it is, the file reads.
    with gzip.open(io.BytesIO(content)) as file:
        assert list(payloads_of(scan_records(file))) == PAYLOADS


def test_a_wrong_checksum_of_a_compressed_stream_is_a_damaged_record() -> None:
    flipped = bytearray(gzip.compress(framed([np.random.default_rng(0).bytes(1000)] * 3)))
    flipped[-6] ^= 1  # in the checksum of the whole
    _, error = read_until_damaged(payloads_of(scan_records(open_records(io.BytesIO(flipped)))))
    assert error is not None
    assert error.found is Damage.COMPRESSED_STREAM


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
    assert list(read_in_place(content)) == expected
    with path.open("rb") as file:
        assert list(payloads_of(scan_records(open_records(file)))) == expected


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 200))
def test_chunks_of_any_size_hold_all_records_with_their_places(payloads: list[bytes], chunk_bytes: int) -> None:
    content = framed(payloads)
    records = 0
    for chunk in scan_records(io.BytesIO(content), chunk_bytes=chunk_bytes):
        assert chunk.first_record == records
        for row, (start, stop) in enumerate(zip(chunk.starts, chunk.stops, strict=True)):
            assert chunk.content[start:stop].tobytes() == payloads[records]
            assert chunk.record_offset(row) == sum(len(payload) + 16 for payload in payloads[:records])
            records += 1
    assert records == len(payloads)


def test_a_record_longer_than_a_chunk_is_whole() -> None:
    payloads = [b"a", np.random.default_rng(2).bytes(100_000), b"z"]
    assert list(payloads_of(scan_records(io.BytesIO(framed(payloads)), chunk_bytes=1000))) == payloads


def test_a_damaged_length_reserves_and_reads_nothing() -> None:
    class Counting(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1, /) -> bytes:
            content = super().read(size)
            self.read_bytes += len(content)
            return content

    damaged = bytearray(framed([bytes(1000)] * 1000))
    damaged[4] = 0x01  # 4 GiB more
    file = Counting(damaged)
    with pytest.raises(DamagedRecordError, match="length checksum mismatch in record 0 at byte 0"):
        list(scan_records(file, chunk_bytes=4096))
    assert file.read_bytes <= 4096
    file = Counting(damaged)
    with pytest.raises(DamagedRecordError, match="length beyond 2 GiB in record 0 at byte 0"):
        list(scan_records(file, chunk_bytes=4096, verify_checksums=False))
    assert file.read_bytes <= 4096


def test_scanning_tells_file_record_and_offset() -> None:
    content = bytearray(framed(PAYLOADS))
    content[50] ^= 1
    with pytest.raises(DamagedRecordError) as caught:
        list(scan_records(io.BytesIO(content), name="part-00003"))
    assert (caught.value.file, caught.value.record, caught.value.offset) == ("part-00003", 2, 37)
    assert str(caught.value).startswith("part-00003: payload checksum mismatch in record 2 at byte 37 (stored 0x")


def skipped(content: bytes, chunk_bytes: int = 64) -> tuple[list[bytes], RecordScan]:
    scanned = scan_records(io.BytesIO(content), on_damage="skip", chunk_bytes=chunk_bytes)
    return list(payloads_of(scanned)), scanned


def skipped_from(reader: BinaryReader) -> tuple[list[bytes], RecordScan]:
    scanned = scan_records(reader, on_damage="skip")
    return list(payloads_of(scanned)), scanned


def test_each_kind_of_damage_loses_its_record_alone_when_it_is_skipped() -> None:
    payloads = [bytes([65 + number]) * 10 * number for number in range(6)]
    content = framed(payloads)
    starts = [sum(len(payload) + 16 for payload in payloads[:number]) for number in range(7)]
    # In the length, the length's checksum, the payload and the payload's checksum of record 3.
    for place in (starts[3], starts[3] + 5, starts[3] + 9, starts[3] + 20, starts[4] - 1):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        for chunk_bytes in (1, 16, 10_000):
            found, scanned = skipped(bytes(damaged), chunk_bytes)
            assert found == payloads[:3] + payloads[4:]
            assert scanned.skipped == 1
            assert [(error.record, error.offset) for error in scanned.damages] == [(3, starts[3])]
    # Bytes lost from the middle of a record: the length points into the next one.
    found, scanned = skipped(content[: starts[3] + 15] + content[starts[3] + 22 :])
    assert (found, scanned.skipped) == (payloads[:3] + payloads[4:], 1)
    # A file that ends early.
    found, scanned = skipped(content[:-3])
    assert (found, scanned.skipped) == (payloads[:-1], 1)
    found, scanned = skipped(content[: starts[5] + 4])
    assert (found, scanned.skipped) == (payloads[:-1], 1)


@given(st.data())
def test_skipping_yields_only_whole_records_whatever_the_damage(data: st.DataObject) -> None:
    payloads = [bytes([number]) * number * 7 for number in range(8)]
    content = bytearray(framed(payloads))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    gap = data.draw(st.integers(0, 30))
    damaged = bytes(content[:cut] + content[cut + gap :])
    found, scanned = skipped(damaged, data.draw(st.integers(1, 300)))
    assert set(found) <= set(payloads)
    assert found == sorted(found, key=len)
    if found != payloads:
        # Whole records may be cut out from between two others without a trace.
        assert scanned.skipped or gap


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_are_scanned_to_their_end(content: bytes, chunk_bytes: int) -> None:
    for verify_checksums in (True, False):
        scanned = scan_records(
            io.BytesIO(content), on_damage="skip", chunk_bytes=chunk_bytes, verify_checksums=verify_checksums
        )
        found, error = read_until_damaged(payloads_of(scanned))
        assert error is None or (error.found is Damage.NO_RECORD and not found)
        assert error is not None or not content or found or scanned.skipped
        assert sum(len(payload) + 16 for payload in found) <= len(content)


@pytest.mark.parametrize("content", [b"id,age\n1,30\n2,40\n3,50\n", b"id", bytes(100), b"\xff" * 5000])
@pytest.mark.parametrize("verify_checksums", [True, False])
def test_a_file_without_any_record_is_refused_even_when_damage_is_skipped(
    content: bytes, verify_checksums: bool
) -> None:
    if content == bytes(100) and not verify_checksums:
        return  # unverified, zeros are records of no bytes
    for stored in (content, gzip.compress(content)):
        reader = open_records(io.BytesIO(stored))
        scanned = scan_records(
            reader, name="a.csv", on_damage="skip", chunk_bytes=16, verify_checksums=verify_checksums
        )
        message = rf"a.csv: no record in it \({len(content)} bytes searched\); it is not a TFRecord file"
        with pytest.raises(DamagedRecordError, match=message) as caught:
            list(scanned)
        assert caught.value.found is Damage.NO_RECORD


def test_a_file_of_one_damaged_record_is_still_one_of_records() -> None:
    content = framed([b"only"])
    flipped = content[:-1] + b"?"
    for damaged in (flipped, content[:-1], b"?" + content[:14], gzip.compress(content)[:5]):
        scanned = scan_records(open_records(io.BytesIO(damaged)), on_damage="skip")
        assert (list(scanned), scanned.skipped) == ([], 1)


def test_no_more_than_a_hundred_damages_are_kept() -> None:
    content = bytearray(framed([b"x"] * 300))
    for record in range(0, 300, 2):
        content[17 * record + 12] ^= 1
    found, scanned = skipped(bytes(content))
    assert (len(found), scanned.skipped, len(scanned.damages)) == (150, 150, 100)


@pytest.mark.parametrize(("name", "value"), [("on_damage", "ignore"), ("chunk_bytes", 0)])
def test_options_of_a_scan_are_checked(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        scan_records(io.BytesIO(), **{name: value})  # type: ignore[arg-type]


def compressed_as(content: bytes, codec: str) -> bytes:
    file = io.BytesIO()
    with compressed(file, codec) as writer:
        for start in range(0, len(content), 1000):
            writer.write(content[start : start + 1000])
    return file.getvalue()


@pytest.mark.parametrize("codec", CODEC_SUFFIX)
def test_compressed_files_are_read_back_and_by_tensorflow(codec: str, tmp_path: Path) -> None:
    payloads = [*PAYLOADS, np.random.default_rng(0).bytes(50_000), bytes(200_000)]
    content = compressed_as(framed(payloads), codec)
    assert content == compressed_as(framed(payloads), codec)
    for told in (None, codec):
        reader = open_records(io.BytesIO(content), codec=told)
        assert list(payloads_of(scan_records(reader, chunk_bytes=1000))) == payloads
    path = tmp_path / f"shard{CODEC_SUFFIX[codec]}"
    path.write_bytes(content)
    compression = "" if codec == "none" else codec.upper()
    assert list(tf.data.TFRecordDataset(str(path), compression).as_numpy_iterator()) == payloads


def test_several_streams_of_gzip_and_padding_are_one_file() -> None:
    content = gzip.compress(framed(PAYLOADS[:1])) + gzip.compress(framed(PAYLOADS[1:])) + bytes(10)
    assert list(payloads_of(scan_records(open_records(io.BytesIO(content))))) == PAYLOADS


@pytest.mark.parametrize("codec", [None, *CODEC_SUFFIX])
def test_an_empty_file_has_no_records_in_any_codec(codec: str | None) -> None:
    assert list(scan_records(open_records(io.BytesIO(), codec=codec))) == []


def test_a_record_whose_length_looks_like_a_codec_is_a_record() -> None:
    # 0x88b1f bytes: the length begins with gzip's mark; 0x9c78 with zlib's.
    for size in (0x88B1F, 0x9C78):
        content = framed([bytes(size)])
        assert content[:2] in (b"\x1f\x8b", b"\x78\x9c")
        assert list(payloads_of(scan_records(open_records(io.BytesIO(content))))) == [bytes(size)]


@pytest.mark.parametrize("codec", [None, "none"])
def test_a_damaged_length_that_looks_like_zlib_is_a_damaged_record(codec: str | None) -> None:
    # A record of 376 bytes, 0x178, begins with a mark of zlib: 78 01. One byte of its header is damaged.
    payloads = [bytes(376), b"second"]
    content = framed(payloads)
    assert content[:2] == b"\x78\x01"
    for place in range(2, 12):
        for value in range(1, 256, 5):
            damaged = bytearray(content)
            damaged[place] ^= value
            found, scanned = skipped_from(open_records(io.BytesIO(damaged), codec=codec))
            assert (found, scanned.skipped) == (payloads[1:], 1)


def test_zlib_is_believed_where_records_come_out_of_it() -> None:
    for level in (0, 1, 6, 9):
        for payloads in (PAYLOADS, [], [np.random.default_rng(1).bytes(100_000)]):
            content = zlib.compress(framed(payloads), level)
            assert list(payloads_of(scan_records(open_records(io.BytesIO(content))))) == payloads
            with pytest.raises(CodecError, match="expected codec none, but its content is of codec zlib"):
                open_records(io.BytesIO(content), codec="none")
    # A file with codec zlib given is opened as such, and is damaged.
    other = zlib.compress(b"id,age\n1,30\n2,40\n")
    for content in (other, framed([bytes(376)])[:6] + b"?" * 400):
        _, error = read_until_damaged(payloads_of(scan_records(open_records(io.BytesIO(content), codec="zlib"))))
        assert error is not None


def test_a_wrong_or_foreign_codec_is_refused_by_name() -> None:
    plain = framed(PAYLOADS)
    with pytest.raises(CodecError, match="part-1: expected codec gzip, but its content is of codec none"):
        open_records(io.BytesIO(plain), name="part-1", codec="gzip")
    with pytest.raises(CodecError, match="expected codec none, but its content is of codec gzip"):
        open_records(io.BytesIO(gzip.compress(plain)), codec="none")
    with pytest.raises(CodecError, match="expected codec gzip, but its content is of codec zlib"):
        open_records(io.BytesIO(zlib.compress(plain)), codec="gzip")
    with pytest.raises(CodecError, match="part-1: the content is bzip2, which is not read here"):
        open_records(io.BytesIO(bz2.compress(plain)), name="part-1")
    with pytest.raises(CodecError, match="the content is Parquet"):
        open_records(io.BytesIO(b"PAR1" + bytes(100)))
    for name in ("snappy", "GZIP"):
        with pytest.raises(CodecError, match=f"codec '{name}' is not known; use one of none, gzip, zlib"):
            open_records(io.BytesIO(plain), codec=name)
        with pytest.raises(CodecError, match=f"codec '{name}' is not known"), compressed(io.BytesIO(), name):
            pass


@pytest.mark.parametrize("codec", ["gzip", "zlib"])
def test_a_compressed_file_cut_at_any_byte_gives_the_records_before_the_cut(codec: str) -> None:
    payloads = [np.random.default_rng(number).bytes(300) for number in range(5)]
    content = compressed_as(framed(payloads), codec)
    for size in range(3, len(content), 23):  # one or two bytes say no codec
        scanned = scan_records(open_records(io.BytesIO(content[:size]), name="shard"), name="shard")
        found, error = read_until_damaged(payloads_of(scanned))
        assert error is not None
        assert error.found is Damage.COMPRESSED_STREAM
        assert error.record == len(found)
        assert found == payloads[: len(found)]
        kept, skipping = [], scan_records(open_records(io.BytesIO(content[:size])), on_damage="skip")
        kept = list(payloads_of(skipping))
        assert (kept, skipping.skipped) == (found, 1)

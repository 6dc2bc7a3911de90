"""TFRecord framing: bytes <-> records.

A record is its payload's length (uint64), the masked CRC-32C of these eight bytes (uint32), the payload, and the masked
CRC-32C of the payload (uint32), all little-endian. Source: TensorFlow ``lib/io/record_writer.h``.
"""

import enum
import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
from numba import types

from data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel
from data_pipelines.tfrecord.crc32c import (
    MASK_DELTA,
    combine_crc32c,
    crc32c,
    crc32c_of_span,
    mask_crc32c,
    masked_crc32c,
)

HEADER_BYTES = 12
FOOTER_BYTES = 4
RECORD_OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES
"""What framing adds to a payload: the next record begins this many bytes plus the payload's length further on."""

LARGEST_PAYLOAD_BYTES = 2**31 - 1
"""Protobuf's limit for a message, so that no record is longer."""

CODEC_SUFFIX = {"none": "", "gzip": ".gz", "zlib": ".deflate"}
"""How files of each codec end; readers go by the content."""

CHUNK_BYTES = 4 * 2**20
"""How much of a file is scanned at a time."""

_WINDOW_BITS = {"gzip": 31, "zlib": 15}
_COMPRESSION_LEVEL = 6
_COMPRESSED_READ_BYTES = 2**20
# So much of a zlib stream holds a whole header, after the tables of its codes (320 bytes at most).
_GUESSED_BYTES = 4096
# What begins files of other formats, for messages.
_FOREIGN_BEGINNINGS = {
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xff\x06\x00\x00sNaPpY": "snappy",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
    b"Obj\x01": "Avro",
    b"ORC": "ORC",
}
_KEPT_DAMAGES = 100

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<QI")
# One read asks for no more than this, so that a damaged length cannot make it reserve memory the file cannot fill.
_READ_BYTES = 64 * 2**20


class BinaryReader(Protocol):
    """A binary file to read from: what ``open``, ``gzip.open`` and ``pyarrow.fs`` return."""

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes; fewer only where the file ends."""


class BinaryWriter(Protocol):
    """A binary file to write to: what ``open``, ``gzip.open`` and ``pyarrow.fs`` return, raw files left out."""

    def write(self, content: bytes, /) -> object:
        """Take all of ``content``."""


class Damage(enum.StrEnum):
    """What can be wrong with a record."""

    TRUNCATED_HEADER = "truncated header"
    TRUNCATED_PAYLOAD = "truncated payload"
    LENGTH_CHECKSUM = "length checksum mismatch"
    PAYLOAD_CHECKSUM = "payload checksum mismatch"
    COMPRESSED_STREAM = "damaged compressed stream"
    TOO_LONG = "length beyond 2 GiB"
    NO_RECORD = "no record in it"


class DamagedRecordError(ValueError):
    """A file's bytes are not the records that were once written.

    Attributes:
        found: what is wrong.
        offset: where the damaged record begins, in bytes from the start of the (uncompressed) file.
        file: the file's name; empty when it is not known.
        detail: the values that disagree.
        record: the record's number in the file, from 0; None when it is not known.
    """

    def __init__(
        self, found: Damage, offset: int, *, file: str = "", detail: str = "", record: int | None = None
    ) -> None:
        self.found = found
        self.offset = offset
        self.file = file
        self.detail = detail
        self.record = record
        which = "the record" if record is None else f"record {record}"
        where = "" if found is Damage.NO_RECORD else f" in {which} at byte {offset}"
        super().__init__(
            f"{file or 'TFRecord data'}: {found}{where}{f' ({detail})' if detail else ''}; {_advice(found, offset)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the parts: the message alone does not rebuild the error."""
        return _rebuild_error, (self.found, self.offset, self.file, self.detail, self.record)


def _rebuild_error(found: Damage, offset: int, file: str, detail: str, record: int | None) -> DamagedRecordError:
    return DamagedRecordError(found, offset, file=file, detail=detail, record=record)


class CodecError(ValueError):
    """A file that is not compressed as it was said to be, or a codec that nobody here knows."""


def _advice(found: Damage, offset: int) -> str:
    if found is Damage.NO_RECORD:
        return "it is not a TFRecord file, or one compressed in a way not known here: leave it out"
    if offset == 0 and found in (Damage.LENGTH_CHECKSUM, Damage.TRUNCATED_HEADER, Damage.TOO_LONG):
        return "check that it is a TFRecord file and not compressed, else write it again from its source"
    return "the records before it are intact; write the file again from its source"


class RecordWriter:
    """Writes records to a file that the caller opens and closes.

    Attributes:
        bytes_written: the bytes of all records written whole, framing included.
        records_written: how many they are.
        file_crc32c: the (unmasked) CRC-32C of these bytes: of the whole file, if it was empty before.
    """

    def __init__(self, file: BinaryWriter) -> None:
        self._file = file
        self.bytes_written = 0
        self.records_written = 0
        self.file_crc32c = 0

    def write(self, payload: bytes) -> int:
        """Write one record and return its offset: how many bytes this writer has written before it.

        Raises:
            OSError: the file cannot be written to. The counts then tell of the records before, but part of this one
                may be in the file.
        """
        offset = self.bytes_written
        length = _LENGTH.pack(len(payload))
        header = length + _CHECKSUM.pack(masked_crc32c(length))
        payload_crc32c = crc32c(payload)
        footer = _CHECKSUM.pack(mask_crc32c(payload_crc32c))
        self._file.write(header)
        self._file.write(payload)
        self._file.write(footer)
        # The payload's checksum joins the file's without a second pass over the payload.
        file_crc32c = combine_crc32c(crc32c(header, self.file_crc32c), payload_crc32c, len(payload))
        self.file_crc32c = crc32c(footer, file_crc32c)
        self.bytes_written += RECORD_OVERHEAD_BYTES + len(payload)
        self.records_written += 1
        return offset

    def write_framed(self, content: npt.NDArray[np.uint8], records: int) -> int:
        """Write records that are framed already, and return the offset of the first.

        Args:
            content: uint8 ``[bytes]``, what a :class:`data_pipelines.tfrecord.row_codec.RowEncoder` returns.
            records: how many they are.

        Raises:
            OSError: the file cannot be written to, as in :meth:`write`.
        """
        offset = self.bytes_written
        # Files take any buffer; the protocol asks for the least that all of them take.
        self._file.write(cast(bytes, content.data))
        self.file_crc32c = crc32c(content, self.file_crc32c)
        self.bytes_written += content.nbytes
        self.records_written += records
        return offset


def read_records(path: str | Path, *, verify_checksums: bool = True) -> Iterator[bytes]:
    """Yield the payload of each record of an uncompressed TFRecord file, one in memory at a time.

    A file that ends between two records is whole as far as framing can tell; the manifest knows how many there were.

    Args:
        path: the file.
        verify_checksums: whether to compare both checksums of each record.

    Raises:
        DamagedRecordError: a record is cut off or does not match its checksums; the records before it were yielded.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        yield from read_record_stream(file, name=str(path), verify_checksums=verify_checksums)


def read_record_stream(file: BinaryReader, *, name: str = "", verify_checksums: bool = True) -> Iterator[bytes]:
    """Yield the payload of each record from an open file: what :func:`read_records` does, also for ``gzip.open``.

    Args:
        file: a binary file at the start of a record. It stays open.
        name: what errors call the file.
        verify_checksums: whether to compare both checksums of each record.

    Raises:
        DamagedRecordError: a record is cut off or does not match its checksums, or ``file`` is a decompressor and finds
            its input damaged; the records before it were yielded.
        OSError: the file cannot be read.
    """
    offset = 0
    for record in count():
        try:
            header = _read_up_to(file, HEADER_BYTES)
            if not header:
                return
            length = _checked_length(header, offset, name, verify_checksums, record)
            payload = _read_up_to(file, length)
            footer = _read_up_to(file, FOOTER_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DamagedRecordError(
                Damage.COMPRESSED_STREAM, offset, file=name, detail=str(error), record=record
            ) from error
        _check_payload(payload, footer, length, offset, name, verify_checksums, record)
        yield payload
        offset += RECORD_OVERHEAD_BYTES + length


def read_record_at(buffer: memoryview, offset: int, *, name: str = "", verify_checksums: bool = True) -> memoryview:
    """Return the payload of the record that begins at ``offset``, without copying it.

    The next record begins at ``offset + len(payload) + RECORD_OVERHEAD_BYTES``.

    Args:
        buffer: the file's bytes, for example ``memoryview(mmap.mmap(...))``.
        offset: where the record begins, in bytes.
        name: what errors call the file.
        verify_checksums: whether to compare both checksums of the record.

    Raises:
        DamagedRecordError: no whole record begins there, or it does not match its checksums.
        ValueError: ``offset`` is negative.
    """
    if offset < 0:
        raise ValueError(f"offset {offset} of a record is negative; use one that RecordWriter.write returned")
    length = _checked_length(buffer[offset : offset + HEADER_BYTES], offset, name, verify_checksums)
    start = offset + HEADER_BYTES
    payload = buffer[start : start + length]
    footer = buffer[start + length : start + length + FOOTER_BYTES]
    _check_payload(payload, footer, length, offset, name, verify_checksums)
    return payload


def _read_up_to(file: BinaryReader, size: int) -> bytes:
    """Read ``size`` bytes, or what there is before the file ends."""
    content = file.read(min(size, _READ_BYTES))
    if len(content) == size:
        return content
    pieces = [content]
    missing = size - len(content)
    while missing and pieces[-1]:
        pieces.append(file.read(min(missing, _READ_BYTES)))
        missing -= len(pieces[-1])
    return b"".join(pieces)


def _checked_length(
    header: bytes | memoryview, offset: int, name: str, verify_checksums: bool, record: int | None = None
) -> int:
    if len(header) < HEADER_BYTES:
        detail = f"{len(header)} of {HEADER_BYTES} bytes"
        raise DamagedRecordError(Damage.TRUNCATED_HEADER, offset, file=name, detail=detail, record=record)
    length, checksum = _HEADER.unpack(header)
    if verify_checksums:
        _compare(Damage.LENGTH_CHECKSUM, checksum, masked_crc32c(header[: _LENGTH.size]), offset, name, record)
    return int(length)


def _check_payload(
    payload: bytes | memoryview,
    footer: bytes | memoryview,
    length: int,
    offset: int,
    name: str,
    verify_checksums: bool,
    record: int | None = None,
) -> None:
    present = len(payload) + len(footer)
    if present < length + FOOTER_BYTES:
        detail = f"{present} of {length + FOOTER_BYTES} bytes after the header"
        raise DamagedRecordError(Damage.TRUNCATED_PAYLOAD, offset, file=name, detail=detail, record=record)
    if verify_checksums:
        stored = _CHECKSUM.unpack(footer)[0]
        _compare(Damage.PAYLOAD_CHECKSUM, stored, masked_crc32c(payload), offset, name, record)


def _compare(found: Damage, stored: int, computed: int, offset: int, name: str, record: int | None) -> None:
    if stored != computed:
        detail = f"stored {stored:#010x}, computed {computed:#010x}"
        raise DamagedRecordError(found, offset, file=name, detail=detail, record=record)


@dataclass(frozen=True)
class RecordChunk:
    """Some whole records of a file, one right after the other.

    Attributes:
        content: uint8 ``[bytes]``: a piece of the file.
        starts: int64 ``[records]``: where each payload begins in ``content``.
        stops: int64 ``[records]``: where each ends.
        first_record: the number of the first record in the file, from 0.
        offset: where ``content`` begins in the (uncompressed) file; None where the records are from no file.
    """

    content: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    first_record: int = 0
    offset: int | None = None

    def record_offset(self, row: int) -> int | None:
        """Return where a record begins in the (uncompressed) file, or None if it is from no file."""
        return None if self.offset is None else self.offset + int(self.starts[row]) - HEADER_BYTES

    def part(self, first: int, last: int) -> "RecordChunk":
        """Return the records from ``first`` up to ``last``, counted from the chunk's first."""
        return RecordChunk(
            self.content, self.starts[first:last], self.stops[first:last], self.first_record + first, self.offset
        )

    @classmethod
    def of_payloads(cls, payloads: list[bytes]) -> "RecordChunk":
        """Return payloads that did not come from a file as a chunk."""
        stops = np.cumsum([len(payload) for payload in payloads], dtype=np.int64)
        starts = stops - np.array([len(payload) for payload in payloads], np.int64)
        return cls(np.frombuffer(b"".join(payloads), np.uint8), starts, stops)


class RecordScan(Iterator[RecordChunk]):
    """The chunks of a file, and what was skipped of it.

    Attributes:
        skipped: how many damaged records were skipped so far. Where the length of one is damaged too, nobody can tell
            how many there were up to the next whole one: they count as one.
        damages: the first hundred of them.
    """

    def __init__(
        self,
        file: BinaryReader,
        *,
        name: str,
        verify_checksums: bool,
        on_damage: Literal["fail", "skip"],
        chunk_bytes: int,
    ) -> None:
        self._file = file
        self._name = name
        self._verify_checksums = verify_checksums
        self._is_skipping = on_damage == "skip"
        self._chunk_bytes = chunk_bytes
        self._content = np.empty(0, np.uint8)
        self._offset = 0
        self._record = 0
        self._has_ended = False
        self._stream_error: Exception | None = None
        # Whether anything says that the file is one of records at all.
        self._is_of_records = False
        self._chunks = self._scan()
        self.skipped = 0
        self.damages: list[DamagedRecordError] = []

    def __next__(self) -> RecordChunk:
        return next(self._chunks)

    def _scan(self) -> Iterator[RecordChunk]:
        while True:
            self._fill(self._chunk_bytes)
            starts, stops, at, problem, stored, computed = _whole_records(self._content, self._verify_checksums)
            if len(starts):
                self._is_of_records = True
                yield RecordChunk(self._content, starts, stops, self._record, self._offset)
            self._advance(at)
            self._record += len(starts)
            if problem == _INCOMPLETE:
                needed = _record_bytes(self._content)
                self._fill(needed)
                if len(self._content) >= needed:
                    continue
                if not len(self._content) and self._stream_error is None:
                    self._check_that_records_were_found()
                    return
                self._report(*self._incomplete(needed))
            else:
                detail = f"stored {stored:#010x}, computed {computed:#010x}"
                self._report(_PROBLEMS[problem], f"{computed} bytes" if problem == _TOO_LONG else detail)
            self._resynchronise(problem)

    def _fill(self, size: int) -> None:
        """Read until there are ``size`` bytes or the file ends."""
        pieces = [self._content]
        present = len(self._content)
        while present < size and not self._has_ended:
            try:
                # A whole chunk at a time, and never more than that for a length that may be damaged.
                piece = self._file.read(self._chunk_bytes)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self._stream_error = error
                piece = b""
            self._has_ended = not piece
            pieces.append(np.frombuffer(piece, np.uint8))
            present += len(piece)
        filled = [piece for piece in pieces if len(piece)]
        if filled:
            self._content = filled[0] if len(filled) == 1 else np.concatenate(filled)

    def _advance(self, size: int) -> None:
        self._content = self._content[size:]
        self._offset += size

    def _incomplete(self, needed: int) -> tuple[Damage, str]:
        if self._stream_error is not None:
            return Damage.COMPRESSED_STREAM, str(self._stream_error)
        present = len(self._content)
        if present < HEADER_BYTES:
            return Damage.TRUNCATED_HEADER, f"{present} of {HEADER_BYTES} bytes"
        return Damage.TRUNCATED_PAYLOAD, f"{present - HEADER_BYTES} of {needed - HEADER_BYTES} bytes after the header"

    def _report(self, found: Damage, detail: str) -> None:
        """Raise for the record at the beginning of the content, or count it."""
        error = DamagedRecordError(found, self._offset, file=self._name, detail=detail, record=self._record)
        if not self._is_skipping:
            raise error from self._stream_error
        # A length with its checksum is a record's, and a broken stream may have held any.
        self._is_of_records |= self._stream_error is not None or _has_header(self._content)
        self.skipped += 1
        self._record += 1
        if len(self.damages) < _KEPT_DAMAGES:
            self.damages.append(error)

    def _check_that_records_were_found(self) -> None:
        """Raise if all that was searched says nothing of records: skipping is for damage, not for other files."""
        if self.skipped and not self._is_of_records:
            detail = f"{self._offset} bytes searched"
            raise DamagedRecordError(Damage.NO_RECORD, 0, file=self._name, detail=detail)

    def _resynchronise(self, problem: int) -> None:
        """Go on behind the damaged record: where its length says, if a record begins there, else at the next header."""
        if problem == _PAYLOAD_CHECKSUM:
            size = _record_bytes(self._content)
            self._fill(size + HEADER_BYTES)
            following = self._content[size : size + HEADER_BYTES]
            if not len(following) or _next_header(following, 0) == 0:
                self._advance(size)
                return
        at = 1
        while True:
            at = int(_next_header(self._content, at))
            if at + HEADER_BYTES <= len(self._content):
                self._is_of_records = True
                needed = at + _record_bytes(self._content[at:])
                self._fill(needed)
                if len(self._content) >= needed:
                    self._advance(at)
                    return
                at += 1
                continue
            if self._has_ended:
                self._advance(len(self._content))
                self._stream_error = None
                return
            # What was searched is done with; the rest may begin a header.
            self._advance(at)
            at = 0
            self._fill(max(self._chunk_bytes, HEADER_BYTES))


def scan_records(
    file: BinaryReader,
    *,
    name: str = "",
    verify_checksums: bool = True,
    on_damage: Literal["fail", "skip"] = "fail",
    chunk_bytes: int = CHUNK_BYTES,
) -> RecordScan:
    """Return an iterator over the records of an open file, many at a time.

    Memory: two chunks, or twice the longest record where that is longer; a damaged length, which its checksum tells,
    reserves nothing. Without checksums a length is believed up to 2 GiB, and no more is read than the file has.

    Args:
        file: a binary file at the start of a record, for example what :func:`open_records` returns. It stays open.
        name: what errors call the file.
        verify_checksums: whether to compare both checksums of each record.
        on_damage: "fail", or "skip" damaged records and count them in :attr:`RecordScan.skipped`. A file in which
            nothing says that it is of records, not even a length with its checksum, is an error even so.
        chunk_bytes: how much to read at a time.

    Raises:
        DamagedRecordError: while iterating: a record is cut off or does not match its checksums, and damage is not to
            be skipped; the records before it were yielded. Or the file is not empty and has no record in it.
        OSError: while iterating: the file cannot be read.
    """
    if on_damage not in ("fail", "skip"):
        raise ValueError(f"on_damage is {on_damage!r}; it is 'fail' or 'skip'")
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes is {chunk_bytes}; read at least one byte at a time")
    return RecordScan(file, name=name, verify_checksums=verify_checksums, on_damage=on_damage, chunk_bytes=chunk_bytes)


def open_records(file: BinaryReader, *, name: str = "", codec: str | None = None) -> BinaryReader:
    """Return a reader of the records of a file that may be compressed.

    Which codec it is shows in the content, whatever the file's name: gzip, zlib (also named ``.deflate``) or none.
    Two bytes are all that marks zlib, and a damaged length may look like them: without being told so, a file is taken
    for zlib only where records come out of it.

    Args:
        file: the file as it is stored, at its beginning. It stays open.
        name: what errors call it.
        codec: what it has to be, one of :data:`CODEC_SUFFIX`; None for any.

    Raises:
        CodecError: it is compressed in another way than told, or in one that is not known here.
        OSError: the file cannot be read.
    """
    if codec is not None and codec not in CODEC_SUFFIX:
        raise CodecError(f"codec {codec!r} is not known; use one of {', '.join(CODEC_SUFFIX)}")
    beginning = _read_up_to(file, HEADER_BYTES)
    found = _codec_of(beginning, name)
    if found == "zlib" and codec != "zlib":
        beginning += _read_up_to(file, _GUESSED_BYTES)
        found = _checked_zlib(beginning, codec)
    # Nothing in an empty file says what it is; and it has no records in any codec.
    if beginning and codec not in (None, found):
        raise CodecError(
            f"{name or 'TFRecord data'}: told to be of codec {codec}, but its content is of codec {found}; leave the "
            "codec out to go by the content"
        )
    if found == "none":
        return _Prefixed(beginning, file)
    return _Inflated(beginning, file, _WINDOW_BITS[found])


@contextmanager
def compressed(file: BinaryWriter, codec: str) -> Iterator[BinaryWriter]:
    """Yield a file that compresses into ``file`` what is written to it; equal content gives equal bytes.

    Args:
        file: where the compressed bytes go. It stays open.
        codec: one of :data:`CODEC_SUFFIX`.

    Raises:
        CodecError: the codec is not known.
    """
    if codec == "none":
        yield file
        return
    if codec not in _WINDOW_BITS:
        raise CodecError(f"codec {codec!r} is not known; use one of {', '.join(CODEC_SUFFIX)}")
    deflated = _Deflated(file, _WINDOW_BITS[codec])
    yield deflated
    # Not after an error: a stream without its end shows that it is not whole.
    deflated.finish()


class _Deflated:
    """A file that compresses."""

    def __init__(self, file: BinaryWriter, window_bits: int) -> None:
        self._file = file
        self._deflater = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, window_bits)

    def write(self, content: bytes, /) -> object:
        return self._file.write(self._deflater.compress(content))

    def finish(self) -> None:
        self._file.write(self._deflater.flush())


class _Prefixed:
    """A file of which the first bytes were read already."""

    def __init__(self, beginning: bytes, file: BinaryReader) -> None:
        self._beginning = beginning
        self._file = file

    def read(self, size: int, /) -> bytes:
        if not self._beginning:
            return self._file.read(size)
        content = self._beginning[:size]
        self._beginning = self._beginning[size:]
        return content + self._file.read(size - len(content)) if len(content) < size else content


class _Inflated:
    """A file that decompresses: one stream, or several one after the other."""

    def __init__(self, beginning: bytes, file: BinaryReader, window_bits: int) -> None:
        self._input = beginning
        self._file = file
        self._window_bits = window_bits
        self._inflater = zlib.decompressobj(window_bits)
        self._is_between_streams = False
        self._error: Exception | None = None

    def read(self, size: int, /) -> bytes:
        pieces: list[bytes] = []
        missing = size
        while missing:
            try:
                piece = self._piece(missing)
            except (EOFError, zlib.error) as error:
                # What was read before the damage is told first.
                self._error = error
                break
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        if self._error is not None and not pieces:
            raise self._error
        return b"".join(pieces)

    def _piece(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none only at the end."""
        if self._error is not None:
            raise self._error
        while True:
            self._input = self._input or self._file.read(_COMPRESSED_READ_BYTES)
            if self._is_between_streams:
                # Files of gzip may be padded with zeros.
                self._input = self._input.lstrip(b"\0")
                if self._input:
                    self._inflater = zlib.decompressobj(self._window_bits)
                    self._is_between_streams = False
                elif not (more := self._file.read(_COMPRESSED_READ_BYTES)):
                    return b""
                else:
                    self._input = more
                    continue
            if not self._input:
                raise EOFError("the compressed stream ends before its end marker")
            piece = self._inflater.decompress(self._input, size)
            self._input = self._inflater.unconsumed_tail
            if self._inflater.eof:
                self._input = self._inflater.unused_data
                self._is_between_streams = True
            if piece:
                return piece


def _codec_of(beginning: bytes, name: str) -> str:
    """Return the codec of a file that begins so.

    Raises:
        CodecError: It begins as files of another format do.
    """
    # A record's length may look like anything; its checksum says that it is one.
    if _has_header(np.frombuffer(beginning, np.uint8)):
        return "none"
    if beginning.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if len(beginning) >= 2 and beginning[0] & 15 == 8 and beginning[0] >> 4 <= 7 and not _big_endian(beginning) % 31:
        return "zlib"
    for start, format_ in _FOREIGN_BEGINNINGS.items():
        if beginning.startswith(start):
            raise CodecError(
                f"{name or 'TFRecord data'}: the content is {format_}, which is not read here; write it as TFRecord, "
                f"compressed with {' or '.join(_WINDOW_BITS)} or not at all"
            )
    return "none"


def _checked_zlib(beginning: bytes, codec: str | None) -> str:
    """Return the codec of a file whose first two bytes are those of zlib, from what comes out of it."""
    inflater = zlib.decompressobj(_WINDOW_BITS["zlib"])
    try:
        inflated = inflater.decompress(beginning, HEADER_BYTES)
    except zlib.error:
        return "none"
    if len(inflated) == HEADER_BYTES:
        return "zlib" if _has_header(np.frombuffer(inflated, np.uint8)) else "none"
    if inflater.eof:
        return "none" if inflated else "zlib"
    # The file is cut off before it shows what it is.
    is_whole = len(beginning) == HEADER_BYTES + _GUESSED_BYTES
    return "none" if is_whole or codec == "none" else "zlib"


def _big_endian(beginning: bytes) -> int:
    return int.from_bytes(beginning[:2], "big")


def _has_header(content: npt.NDArray[np.uint8]) -> bool:
    """Return whether ``content`` begins with a length and its checksum."""
    return len(content) >= HEADER_BYTES and int(_next_header(content[:HEADER_BYTES], 0)) == 0


def _record_bytes(content: npt.NDArray[np.uint8]) -> int:
    """Return how many bytes the record at the beginning of ``content`` takes, as far as is known."""
    if len(content) < HEADER_BYTES:
        return HEADER_BYTES
    return RECORD_OVERHEAD_BYTES + int(_LENGTH.unpack(content[: _LENGTH.size].tobytes())[0])


_INCOMPLETE, _LENGTH_CHECKSUM, _PAYLOAD_CHECKSUM, _TOO_LONG = range(4)
_PROBLEMS = {
    _LENGTH_CHECKSUM: Damage.LENGTH_CHECKSUM,
    _PAYLOAD_CHECKSUM: Damage.PAYLOAD_CHECKSUM,
    _TOO_LONG: Damage.TOO_LONG,
}


@compile_inner_kernel
def _uint32_at(content: npt.NDArray[np.uint8], at: int) -> np.uint32:
    place = np.uintp(at)
    return (
        np.uint32(content[place])
        | np.uint32(content[place + np.uintp(1)]) << np.uint32(8)
        | np.uint32(content[place + np.uintp(2)]) << np.uint32(16)
        | np.uint32(content[place + np.uintp(3)]) << np.uint32(24)
    )


@compile_inner_kernel
def _masked(crc: np.uint32) -> np.uint32:
    return np.uint32((crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(MASK_DELTA))


@compile_kernel(
    types.Tuple((types.int64[::1], types.int64[::1], types.int64, types.int64, types.uint64, types.uint64))(
        READ_ONLY_BYTES, types.boolean
    )
)
def _whole_records(
    content: npt.NDArray[np.uint8], verify_checksums: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int, int, int, int]:
    """Find the records at the beginning of ``content``, up to one that is damaged or not whole.

    Returns where their payloads begin and end, where the record begins that is no more among them, why it is not, and
    the stored and the computed checksum, or its length.
    """
    room = 1024
    at: Any = 0
    starts = np.empty(room, np.int64)
    stops = np.empty(room, np.int64)
    records = 0
    problem = _INCOMPLETE
    stored = np.uint32(0)
    computed = np.uint32(0)
    length = np.uint64(0)
    while content.size - at >= HEADER_BYTES:
        length = np.uint64(_uint32_at(content, at)) | np.uint64(_uint32_at(content, at + 4)) << np.uint64(32)
        if verify_checksums:
            stored = _uint32_at(content, at + 8)
            computed = _masked(crc32c_of_span(content, at, at + 8, 0))
            if stored != computed:
                problem = _LENGTH_CHECKSUM
                break
        if length > np.uint64(LARGEST_PAYLOAD_BYTES):
            problem = _TOO_LONG
            break
        start = at + HEADER_BYTES
        stop = start + np.int64(length)
        if stop + FOOTER_BYTES > content.size:
            break
        if verify_checksums:
            stored = _uint32_at(content, stop)
            computed = _masked(crc32c_of_span(content, start, stop, 0))
            if stored != computed:
                problem = _PAYLOAD_CHECKSUM
                break
        if records == room:
            room *= 2
            more_starts = np.empty(room, np.int64)
            more_stops = np.empty(room, np.int64)
            for record in range(records):
                more_starts[record] = starts[record]
                more_stops[record] = stops[record]
            starts = more_starts
            stops = more_stops
        starts[records] = start
        stops[records] = stop
        records += 1
        at = stop + FOOTER_BYTES
    found = length if problem == _TOO_LONG else np.uint64(computed)
    return starts[:records], stops[:records], at, problem, np.uint64(stored), found  # type: ignore[return-value]


@compile_kernel(types.int64(READ_ONLY_BYTES, types.int64))
def _next_header(content: npt.NDArray[np.uint8], at: int) -> int:
    """Return where, from ``at`` on, a length stands with its checksum; or the first place that has not 12 bytes."""
    while content.size - at >= HEADER_BYTES:
        # Most places fail here: no payload passes 2 GiB.
        if (
            _uint32_at(content, at + 4) == 0
            and _uint32_at(content, at) <= np.uint32(LARGEST_PAYLOAD_BYTES)
            and _uint32_at(content, at + 8) == _masked(crc32c_of_span(content, at, at + 8, 0))
        ):
            return at
        at += 1
    return at

"""Scanning of TFRecord files: many records at a time, optionally skipping damaged ones."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_kernel
from mirrorspark.data_pipelines.tfrecord.checksums import masked_crc32c_of_span
from mirrorspark.data_pipelines.tfrecord.kernels import wire_read
from mirrorspark.data_pipelines.tfrecord.records import (
    FOOTER_BYTES,
    HEADER_BYTES,
    LARGEST_PAYLOAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    BinaryReader,
    Damage,
    DamagedRecordError,
)

CHUNK_BYTES = 4 * 2**20
"""Bytes of a file that are scanned at a time."""

_KEPT_DAMAGES = 100
_LENGTH_BYTES = 8

_INCOMPLETE, _LENGTH_CHECKSUM, _PAYLOAD_CHECKSUM, _TOO_LONG = range(4)
_PROBLEMS = {
    _LENGTH_CHECKSUM: Damage.LENGTH_CHECKSUM,
    _PAYLOAD_CHECKSUM: Damage.PAYLOAD_CHECKSUM,
    _TOO_LONG: Damage.TOO_LONG,
}


@dataclass(frozen=True)
class RecordChunk:
    """Consecutive complete records of a file.

    Attributes:
        content: uint8 ``[bytes]``: a piece of the file.
        starts: int64 ``[records]``: where each payload begins in ``content``.
        stops: int64 ``[records]``: where each ends.
        first_record: the number of the first record in the file, from 0.
        offset: where ``content`` begins in the (uncompressed) file; None for records that come from no file.
    """

    content: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    first_record: int = 0
    offset: int | None = None

    def record_offset(self, row: int) -> int | None:
        """Return the offset of a record in the (uncompressed) file, or None if it does not come from a file."""
        return None if self.offset is None else self.offset + int(self.starts[row]) - HEADER_BYTES

    def part(self, first: int, last: int) -> "RecordChunk":
        """Return the records from ``first`` up to ``last``, counted from the chunk's first."""
        return RecordChunk(
            self.content, self.starts[first:last], self.stops[first:last], self.first_record + first, self.offset
        )


class RecordScan(Iterator[RecordChunk]):
    """An iterator over the chunks of a file that counts the damaged records it skips.

    Attributes:
        skipped: the damaged records skipped so far. If a record's length is damaged, the number of records up to the
            next intact one is unknown; they count as one.
        damages: the errors of the first hundred of them.
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
        # Set once anything shows that the file holds records at all.
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
        """Read until the content has ``size`` bytes or the file ends."""
        pieces = [self._content]
        present = len(self._content)
        while present < size and not self._has_ended:
            try:
                # One chunk at a time: a length that may be damaged must not reserve more.
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
        """Raise the error of the record at the beginning of the content, or count it."""
        error = DamagedRecordError(found, self._offset, file=self._name, detail=detail, record=self._record)
        if not self._is_skipping:
            raise error from self._stream_error
        # A length that matches its checksum belongs to a record; a broken stream may have held records.
        self._is_of_records |= self._stream_error is not None or has_header(self._content)
        self.skipped += 1
        self._record += 1
        if len(self.damages) < _KEPT_DAMAGES:
            self.damages.append(error)

    def _check_that_records_were_found(self) -> None:
        """Raise if nothing in the file looks like a record: skipping is for damage, not for other kinds of files."""
        if self.skipped and not self._is_of_records:
            detail = f"{self._offset} bytes searched"
            raise DamagedRecordError(Damage.NO_RECORD, 0, file=self._name, detail=detail)

    def _resynchronise(self, problem: int) -> None:
        """Continue after the damaged record: where its length points, or else at the next header."""
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
            # The remaining bytes may be the beginning of a header.
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

    Memory: two chunks, or twice the longest record if that is longer. A length that fails its checksum reserves
    nothing. Without checksums, lengths up to 2 GiB are trusted, but no more is read than the file has.

    Args:
        file: a binary file at the start of a record, for example from
            :func:`data_pipelines.tfrecord.open_records`. It stays open.
        name: the file's name, for errors.
        verify_checksums: compare both checksums of each record.
        on_damage: "fail", or "skip" damaged records and count them in :attr:`RecordScan.skipped`. A file without any
            sign of records, not even a length that matches its checksum, is an error either way.
        chunk_bytes: bytes to read at a time.

    Raises:
        DamagedRecordError: while iterating: a record is cut off or does not match its checksums and ``on_damage`` is
            "fail"; the records before it were yielded. Or the file is not empty but holds no record.
        OSError: while iterating: the file cannot be read.
    """
    if on_damage not in ("fail", "skip"):
        raise ValueError(f"on_damage is {on_damage!r}; it is 'fail' or 'skip'")
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes is {chunk_bytes}; read at least one byte at a time")
    return RecordScan(file, name=name, verify_checksums=verify_checksums, on_damage=on_damage, chunk_bytes=chunk_bytes)


def has_header(content: npt.NDArray[np.uint8]) -> bool:
    """Return whether ``content`` begins with a length and its checksum."""
    return len(content) >= HEADER_BYTES and int(_next_header(content[:HEADER_BYTES], 0)) == 0


def _record_bytes(content: npt.NDArray[np.uint8]) -> int:
    """Return the bytes of the record at the beginning of ``content``, or of a header if that is incomplete."""
    if len(content) < HEADER_BYTES:
        return HEADER_BYTES
    return RECORD_OVERHEAD_BYTES + int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")


@compile_kernel(
    types.Tuple((types.int64[::1], types.int64[::1], types.int64, types.int64, types.uint64, types.uint64))(
        READ_ONLY_BYTES, types.boolean
    )
)
def _whole_records(
    content: npt.NDArray[np.uint8], verify_checksums: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int, int, int, int]:
    """Find the records at the beginning of ``content``, up to the first that is damaged or incomplete.

    Returns the bounds of their payloads, the beginning of that first record, the code of its error, and the stored and
    the computed checksum, or its length.
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
        length = np.uint64(wire_read.uint32_at(content, at)) | np.uint64(
            wire_read.uint32_at(content, at + 4)
        ) << np.uint64(32)
        if verify_checksums:
            stored = wire_read.uint32_at(content, at + 8)
            computed = masked_crc32c_of_span(content, at, at + 8)
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
            stored = wire_read.uint32_at(content, stop)
            computed = masked_crc32c_of_span(content, start, stop)
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
    """Return the first place from ``at`` on with a length and its checksum, or else the first without 12 bytes left."""
    while content.size - at >= HEADER_BYTES:
        # Most places fail here: no payload is longer than 2 GiB.
        if (
            wire_read.uint32_at(content, at + 4) == 0
            and wire_read.uint32_at(content, at) <= np.uint32(LARGEST_PAYLOAD_BYTES)
            and wire_read.uint32_at(content, at + 8) == masked_crc32c_of_span(content, at, at + 8)
        ):
            return at
        at += 1
    return at

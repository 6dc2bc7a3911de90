"""TFRecord framing: writing records, and reading one at a known place.

:mod:`data_pipelines.tfrecord.record_scan` reads a whole file.

A record is its payload's length (uint64), the masked CRC-32C of these eight bytes (uint32), the payload, and the masked
CRC-32C of the payload (uint32), all little-endian. Source: TensorFlow ``lib/io/record_writer.h``.
"""

import enum
import struct
from typing import Any, Protocol

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.tfrecord.checksums import (
    combine_crc32c,
    crc32c,
    mask_crc32c,
    masked_crc32c,
)

HEADER_BYTES = 12
FOOTER_BYTES = 4
RECORD_OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES
"""Bytes that framing adds to a payload."""

LARGEST_PAYLOAD_BYTES = 2**31 - 1
"""Protobuf's limit for a message, and so for a record's payload."""

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<QI")
# The most that one read asks for: a damaged length must not reserve memory that the file cannot fill.
_READ_BYTES = 64 * 2**20


class BinaryReader(Protocol):
    """A readable binary file, as ``open``, ``gzip.open`` and ``pyarrow.fs`` return."""

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes, or fewer at the end of the file."""


class BinaryWriter(Protocol):
    """A writable, buffered binary file, as ``open``, ``gzip.open`` and ``pyarrow.fs`` return."""

    def write(self, content: bytes, /) -> object:
        """Write all of ``content``."""


class Damage(enum.StrEnum):
    """Kinds of damage to a record."""

    TRUNCATED_HEADER = "truncated header"
    TRUNCATED_PAYLOAD = "truncated payload"
    LENGTH_CHECKSUM = "length checksum mismatch"
    PAYLOAD_CHECKSUM = "payload checksum mismatch"
    COMPRESSED_STREAM = "damaged compressed stream"
    TOO_LONG = "length beyond 2 GiB"
    NO_RECORD = "no record in it"


class DamagedRecordError(ClearError, ValueError):
    """A file whose bytes are not the records that were written.

    Attributes:
        found: the damage, in words.
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


def _advice(found: Damage, offset: int) -> str:
    if found is Damage.NO_RECORD:
        return "it is not a TFRecord file, or one compressed in a way not known here: leave it out"
    if offset == 0 and found in (Damage.LENGTH_CHECKSUM, Damage.TRUNCATED_HEADER, Damage.TOO_LONG):
        return "check that it is a TFRecord file and not compressed, else write it again from its source"
    return "the records before it are intact; write the file again from its source"


class RecordWriter:
    """Writes records to a file that the caller opens and closes.

    Attributes:
        bytes_written: the bytes of all complete records, including framing.
        file_crc32c: the (unmasked) CRC-32C of these bytes; of the whole file if it was empty before.
    """

    def __init__(self, file: BinaryWriter) -> None:
        self._file = file
        self.bytes_written = 0
        self.records_written = 0
        self.file_crc32c = 0

    def write(self, payload: bytes) -> int:
        """Write one record and return its offset: the number of bytes that this writer wrote before it.

        Raises:
            OSError: the file cannot be written to. The counts then cover the earlier records, but part of this one may
                be in the file.
        """
        offset = self.bytes_written
        length = _LENGTH.pack(len(payload))
        header = length + _CHECKSUM.pack(masked_crc32c(length))
        payload_crc32c = crc32c(payload)
        footer = _CHECKSUM.pack(mask_crc32c(payload_crc32c))
        self._file.write(header)
        self._file.write(payload)
        self._file.write(footer)
        # This combines the payload's checksum with the file's without a second pass over the payload.
        file_crc32c = combine_crc32c(crc32c(header, self.file_crc32c), payload_crc32c, len(payload))
        self.file_crc32c = crc32c(footer, file_crc32c)
        self.bytes_written += RECORD_OVERHEAD_BYTES + len(payload)
        self.records_written += 1
        return offset


def read_record_at(buffer: memoryview, offset: int, *, name: str = "") -> memoryview:
    """Return the payload of the record that begins at ``offset``, without copying it.

    The next record begins at ``offset + len(payload) + RECORD_OVERHEAD_BYTES``.

    Args:
        buffer: the file's bytes, for example ``memoryview(mmap.mmap(...))``.
        offset: where the record begins, in bytes.
        name: the file's name, for errors.

    Raises:
        DamagedRecordError: no whole record begins there, or it does not match its checksums.
        ValueError: ``offset`` is negative.
    """
    if offset < 0:
        raise ValueError(f"offset {offset} of a record is negative; use one that RecordWriter.write returned")
    header = buffer[offset : offset + HEADER_BYTES]
    if len(header) < HEADER_BYTES:
        detail = f"{len(header)} of {HEADER_BYTES} bytes"
        raise DamagedRecordError(Damage.TRUNCATED_HEADER, offset, file=name, detail=detail)
    length, checksum = _HEADER.unpack(header)
    _compare(Damage.LENGTH_CHECKSUM, checksum, masked_crc32c(header[: _LENGTH.size]), offset, name)
    start = offset + HEADER_BYTES
    payload = buffer[start : start + length]
    footer = buffer[start + length : start + length + FOOTER_BYTES]
    present = len(payload) + len(footer)
    if present < length + FOOTER_BYTES:
        detail = f"{present} of {length + FOOTER_BYTES} bytes after the header"
        raise DamagedRecordError(Damage.TRUNCATED_PAYLOAD, offset, file=name, detail=detail)
    _compare(Damage.PAYLOAD_CHECKSUM, _CHECKSUM.unpack(footer)[0], masked_crc32c(payload), offset, name)
    return payload


def read_up_to(file: BinaryReader, size: int) -> bytes:
    """Read ``size`` bytes, or fewer at the end of the file."""
    content = file.read(min(size, _READ_BYTES))
    if len(content) == size:
        return content
    pieces = [content]
    missing = size - len(content)
    while missing and pieces[-1]:
        pieces.append(file.read(min(missing, _READ_BYTES)))
        missing -= len(pieces[-1])
    return b"".join(pieces)


def _compare(found: Damage, stored: int, computed: int, offset: int, name: str) -> None:
    if stored != computed:
        raise DamagedRecordError(found, offset, file=name, detail=f"stored {stored:#010x}, computed {computed:#010x}")

"""Footers of ORC files: the columns, whether Spark wrote the file, and the time zone of its writer.

ORC's ``timestamp`` has no zone: a file has the times that a clock of its writer showed, and the zone of that clock.
Spark stores moments so, and others wall clocks.

Source: the ORC specification, version 1, and its ``orc_proto.proto``.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa
import pyarrow.orc

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import StoragePath

UTC = "UTC"

_SPARK_VERSION = b"org.apache.spark.version"
_NAMES_OF_UTC = ("UTC", "GMT", "Etc/UTC", "Etc/GMT", "Z")
_MOST_POSTSCRIPT_BYTES = 256

# Numbers of fields, by message.
_POSTSCRIPT_FOOTER_BYTES, _POSTSCRIPT_COMPRESSION, _POSTSCRIPT_BLOCK_BYTES = 1, 2, 3
_FOOTER_STRIPE = 3
_STRIPE_OFFSET, _STRIPE_INDEX_BYTES, _STRIPE_DATA_BYTES, _STRIPE_FOOTER_BYTES = 1, 2, 3, 4
_STRIPE_FOOTER_ZONE = 3

_NONE, _ZLIB, _SNAPPY, _LZ4, _ZSTD = 0, 1, 2, 4, 5
_CHUNK_HEADER_BYTES = 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class OrcError(ClearError, ValueError):
    """A file that is not ORC, or has times that cannot be read; the message names it."""


@dataclass(frozen=True)
class OrcFooter:
    """The facts of a file by which its times are read.

    Attributes:
        columns: Its columns.
        is_of_spark: Spark has written it.
        zone: The time zone of its writer, if it has times without a zone and this machine knows that zone.
    """

    columns: pa.Schema
    is_of_spark: bool
    zone: str | None

    @property
    def times(self) -> dict[str, pa.DataType]:
        """The columns of times without a zone, and of lists of them, with their types."""
        return {field.name: field.type for field in self.columns if _has_no_zone(field.type)}


def read_footer(path: StoragePath) -> OrcFooter:
    """Return the footer of a file.

    Raises:
        OrcError: It is not an ORC file.
    """
    try:
        with path.open_read() as source:
            file = pyarrow.orc.ORCFile(source)
            footer = OrcFooter(file.schema.remove_metadata(), _SPARK_VERSION in (file.metadata or {}), UTC)
            if not footer.times or not file.nrows:
                return footer
            return OrcFooter(footer.columns, footer.is_of_spark, known_zone(_zone_of_writer(source)))
    except (pa.ArrowException, OSError) as error:
        raise OrcError(f"{path} is not an ORC file: {error}; leave it out") from error


def known_zone(name: str | None) -> str | None:
    """Return the name of a time zone, ``UTC`` for all its names, or None for one that this machine does not know."""
    if name in _NAMES_OF_UTC:
        return UTC
    try:
        return ZoneInfo(name).key if name else None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _has_no_zone(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_no_zone(kind.value_type)
    return pa.types.is_timestamp(kind) and kind.tz is None


def _zone_of_writer(source: pa.NativeFile) -> str | None:
    """Return the zone in the footer of the first stripe, or None if it is packed in a way that is not read here."""
    size = source.size()
    tail = _read(source, max(size - _MOST_POSTSCRIPT_BYTES, 0), min(size, _MOST_POSTSCRIPT_BYTES))
    try:
        end = tail[-1] + 1
        postscript = dict(_fields(tail[-end:-1]))
        packing = postscript.get(_POSTSCRIPT_COMPRESSION, _NONE), postscript.get(_POSTSCRIPT_BLOCK_BYTES, 0)
        footer_bytes = postscript[_POSTSCRIPT_FOOTER_BYTES]
        footer = _unpacked(_read(source, size - end - footer_bytes, footer_bytes), *packing)
        stripe = dict(_fields(_first(footer, _FOOTER_STRIPE)))
        begin = stripe[_STRIPE_OFFSET] + stripe.get(_STRIPE_INDEX_BYTES, 0) + stripe[_STRIPE_DATA_BYTES]
        of_stripe = _unpacked(_read(source, begin, stripe[_STRIPE_FOOTER_BYTES]), *packing)
        return str(_first(of_stripe, _STRIPE_FOOTER_ZONE), "utf-8", "replace")
    except (LookupError, zlib.error, pa.ArrowException, OSError):
        return None


def _read(source: pa.NativeFile, begin: int, count: int) -> bytes:
    source.seek(begin)
    return bytes(source.read(count))


def _unpacked(packed: bytes, compression: int, block_bytes: int) -> bytes:
    """Return the bytes of the chunks of a part of a file, maybe with others behind them.

    Raises:
        LookupError: The compression is not known here.
    """
    if compression == _NONE:
        return packed
    parts = []
    while packed:
        header = int.from_bytes(packed[:_CHUNK_HEADER_BYTES], "little")
        end = _CHUNK_HEADER_BYTES + (header >> 1)
        is_original, chunk, packed = header & 1, packed[_CHUNK_HEADER_BYTES:end], packed[end:]
        parts.append(chunk if is_original else _UNPACKERS[compression](chunk, block_bytes))
    return b"".join(parts)


_UNPACKERS: Mapping[int, Callable[[bytes, int], bytes]] = {
    _ZLIB: lambda chunk, _: zlib.decompress(chunk, -zlib.MAX_WBITS),
    # A chunk begins with the number of its bytes.
    _SNAPPY: lambda chunk, _: bytes(pa.Codec("snappy").decompress(chunk, _varint(chunk, 0)[0], asbytes=True)),
    # It does not, so that the last chunk of a part ends with bytes that mean nothing.
    _LZ4: lambda chunk, block_bytes: bytes(pa.Codec("lz4_raw").decompress(chunk, block_bytes, asbytes=True)),
    _ZSTD: lambda chunk, _: bytes(pa.CompressedInputStream(pa.BufferReader(chunk), "zstd").read()),
}


def _first(message: bytes, wanted: int) -> bytes:
    """Return the first value of a field, before which no byte can be one that means nothing.

    Raises:
        LookupError: The message has none.
    """
    for number, value in _fields(message):
        if number == wanted and isinstance(value, bytes):
            return value
    raise LookupError(wanted)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the numbers and values of the fields of a Protocol Buffers message, but those of fixed length."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, form = tag >> 3, tag & 7
        if form == _VARINT:
            value, place = _varint(message, place)
            yield number, value
        elif form == _BYTES:
            count, place = _varint(message, place)
            yield number, message[place : place + count]
            place += count
        else:
            place += {_FIXED64: 8, _FIXED32: 4}[form]


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return the number that begins at ``place``, and the place after it."""
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place

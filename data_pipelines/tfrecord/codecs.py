"""Compression of TFRecord files with gzip or zlib, detected by their content."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.tfrecord.record_scan import has_header
from mirrorspark.data_pipelines.tfrecord.records import HEADER_BYTES, BinaryReader, BinaryWriter, read_up_to

CODEC_SUFFIX = {"none": "", "gzip": ".gz", "zlib": ".deflate"}
"""File name suffixes per codec; readers ignore them and look at the content."""

_WINDOW_BITS = {"gzip": 31, "zlib": 15}
_COMPRESSION_LEVEL = 6
_COMPRESSED_READ_BYTES = 2**20
# This much of a zlib stream contains a whole header, after the code tables (320 bytes at most).
_GUESSED_BYTES = 4096
# First bytes of other formats, for error messages.
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


class CodecError(ClearError, ValueError):
    """A file that is not compressed with the given codec, or a codec that is not supported."""


def open_records(file: BinaryReader, *, name: str = "", codec: str | None = None) -> BinaryReader:
    """Return a reader of the records of a file that may be compressed.

    The content decides on the codec, whatever the file's name: gzip, zlib (also named ``.deflate``) or none. Only two
    bytes mark zlib, and a damaged length may look like them: unless ``codec`` says so, a file counts as zlib only if
    records come out of it.

    Args:
        file: the file as it is stored, at its beginning. It stays open.
        name: its name, for errors.
        codec: the codec that the file must have, one of :data:`CODEC_SUFFIX`; None for any.

    Raises:
        CodecError: it is compressed with another codec than ``codec``, or with an unsupported one.
        OSError: the file cannot be read.
    """
    if codec is not None and codec not in CODEC_SUFFIX:
        raise CodecError(f"codec {codec!r} is not known; use one of {', '.join(CODEC_SUFFIX)}")
    beginning = read_up_to(file, HEADER_BYTES)
    found = _codec_of(beginning, name)
    if found == "zlib" and codec != "zlib":
        beginning += read_up_to(file, _GUESSED_BYTES)
        found = _checked_zlib(beginning, codec)
    # An empty file has no records in any codec.
    if beginning and codec not in (None, found):
        raise CodecError(
            f"{name or 'TFRecord data'}: expected codec {codec}, but its content is of codec {found}; leave the "
            "codec out to detect it"
        )
    if found == "none":
        return _Prefixed(beginning, file)
    return _Inflated(beginning, file, _WINDOW_BITS[found])


@contextmanager
def compressed(file: BinaryWriter, codec: str) -> Iterator[BinaryWriter]:
    """Yield a file that writes compressed content to ``file``; equal content gives equal bytes.

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
    # Not after an error: a stream without an end marker is recognisably incomplete.
    deflated.finish()


class _Deflated:
    """A file that compresses its content."""

    def __init__(self, file: BinaryWriter, window_bits: int) -> None:
        self._file = file
        self._deflater = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, window_bits)

    def write(self, content: bytes, /) -> object:
        return self._file.write(self._deflater.compress(content))

    def finish(self) -> None:
        self._file.write(self._deflater.flush())


class _Prefixed:
    """A file whose first bytes have already been read."""

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
    """A file that decompresses one stream, or several consecutive ones."""

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
                # The content before the damage is returned first.
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
        """Return up to ``size`` bytes; empty only at the end."""
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
    """Return the codec of a file with these first bytes.

    Raises:
        CodecError: They are those of another format.
    """
    # A record's length may look like any format; its checksum proves that it is a length.
    if has_header(np.frombuffer(beginning, np.uint8)):
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
    """Return the codec of a file whose first two bytes are those of zlib, judged by its decompressed content."""
    inflater = zlib.decompressobj(_WINDOW_BITS["zlib"])
    try:
        inflated = inflater.decompress(beginning, HEADER_BYTES)
    except zlib.error:
        return "none"
    if len(inflated) == HEADER_BYTES:
        return "zlib" if has_header(np.frombuffer(inflated, np.uint8)) else "none"
    if inflater.eof:
        return "none" if inflated else "zlib"
    # The file is cut off too early to show its codec.
    is_whole = len(beginning) == HEADER_BYTES + _GUESSED_BYTES
    return "none" if is_whole or codec == "none" else "zlib"


def _big_endian(beginning: bytes) -> int:
    return int.from_bytes(beginning[:2], "big")

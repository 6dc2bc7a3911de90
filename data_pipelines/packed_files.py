"""Packed files of text: Hadoop unpacks gzip and bzip2, by the suffix of the name; others are refused."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import StoragePath

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz"}
_SUFFIXES = {"gzip": ".gz", "bz2": ".bz2"}


class PackedFileError(ClearError, ValueError):
    """A packed file that Spark does not unpack, or that is damaged; the message names the file and the remedy."""


def head_of(path: StoragePath, most: int) -> bytes:
    """Return the first bytes of a file, unpacked.

    Args:
        path: The file.
        most: Number of bytes, both as stored and as returned.

    Raises:
        PackedFileError: It is damaged, or packed in another way than its name says, or than Hadoop unpacks.
    """
    with path.open_read() as file:
        head = bytes(file.read(most))
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packed in _SUFFIXES and path.name.endswith(_SUFFIXES[packed]):
        with unpacked(path) as file:
            return bytes(file.read(most))
    if packed in _SUFFIXES:
        raise PackedFileError(
            f"{path} is packed with {packed}, and its name does not say so; let it end in {_SUFFIXES[packed]}"
        )
    if packed is not None:
        raise PackedFileError(
            f"{path} is packed as {packed}, which Spark does not read; unpack it, or pack it with gzip"
        )
    if suffix := next((end for end in _SUFFIXES.values() if path.name.lower().endswith(end)), None):
        raise PackedFileError(f"{path} is not packed as {suffix} says; rename it")
    return head


@contextmanager
def unpacked(path: StoragePath) -> Iterator[pa.NativeFile]:
    """Open a file to be read from its beginning, unpacked as its name says.

    Raises:
        PackedFileError: It is damaged, which may show anywhere in it.
    """
    codec = next((name for name, end in _SUFFIXES.items() if path.name.endswith(end)), None)
    with path.open_stream() as file:
        if codec is None:
            yield file
            return
        try:
            yield pa.CompressedInputStream(file, codec)
        except OSError as error:
            raise PackedFileError(f"{path} cannot be unpacked ({error}); copy it again, or leave it out") from error

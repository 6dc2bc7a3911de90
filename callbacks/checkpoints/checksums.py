"""Checksums of a checkpoint's files, as text such as ``crc32:0fa1b2c3``, computed on the way to the store."""

import contextlib
import hashlib
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mirrorspark.storage import StoragePath

CRC32 = "crc32"
# Of the first format of markers. It takes three times as a CRC-32, and twice as a flush of the file
# that runs next to it. It would not help against attackers, who can change the marker as well.
SHA256 = "sha256"

# Size of a core's own cache.
_LOCAL_BYTES = 1 << 18
_REMOTE_BYTES = 4 << 20


class Checksum(Protocol):
    """A checksum of the bytes so far, as those of `hashlib`."""

    def update(self, block: bytes | memoryview, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return it in hex digits."""


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, block: bytes | memoryview, /) -> None:
        self._value = zlib.crc32(block, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


KINDS: dict[str, Callable[[], Checksum]] = {CRC32: _Crc32, SHA256: hashlib.sha256}


def kind_of(checksum: str) -> str:
    """Return the kind of a checksum, one of ``KINDS``."""
    return checksum.partition(":")[0]


def checksum_of(path: Path | StoragePath, kind: str = CRC32, beat: Callable[[], None] = lambda: None) -> str:
    """Return the checksum of a file; ``beat`` is called whenever some bytes have been read.

    Raises:
        OSError: The file cannot be read.
    """
    found = KINDS[kind]()
    block = memoryview(bytearray(_LOCAL_BYTES if isinstance(path, Path) else _REMOTE_BYTES))
    with path.open("rb", buffering=0) if isinstance(path, Path) else path.open_stream() as file:
        while count := file.readinto(block):
            found.update(block[:count])
            beat()
    return f"{kind}:{found.hexdigest()}"


class _ClosedError(Exception):
    """Nobody needs the checksums any more."""


class FileChecksums:
    """The checksums of files on the local disk, which a thread computes while the store copies or flushes the files.

    A file is read for this once, however often it is published. `of` computes those that the thread did not,
    because it could not be started or a file could not be read.
    """

    def __init__(self, folder: Path, beat: Callable[[], None] = lambda: None) -> None:
        """Keep the folder; ``beat`` is called, from any thread, whenever some bytes have been read."""
        self._folder = folder
        self._beat = beat
        self._known: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def begin(self, names: Sequence[str]) -> None:
        """Compute the checksums of these files in the background, in their order, if that has not begun yet."""
        if self._thread is not None:
            return
        # A machine may have no more threads, and Python starts none when it ends.
        with contextlib.suppress(RuntimeError):
            thread = threading.Thread(target=self._compute, args=(names,), name="checkpoint-checksums", daemon=True)
            thread.start()
            self._thread = thread

    def of(self, name: str) -> str:
        """Return the checksum of a file, once it is known.

        Raises:
            OSError: The file cannot be read.
        """
        if self._thread is not None:
            self._thread.join()
        if name not in self._known:
            self._known[name] = checksum_of(self._folder / name, beat=self._beat)
        return self._known[name]

    def close(self) -> None:
        """End the thread."""
        self._is_closed = True
        if self._thread is not None:
            self._thread.join()

    def _compute(self, names: Sequence[str]) -> None:
        # The error of a file that cannot be read is raised where its checksum is asked for.
        with contextlib.suppress(OSError, _ClosedError):
            for name in names:
                self._known[name] = checksum_of(self._folder / name, beat=self._beat_or_end)

    def _beat_or_end(self) -> None:
        if self._is_closed:
            raise _ClosedError
        self._beat()

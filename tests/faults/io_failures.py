"""Failing I/O: one call of many that fails, a power cut between any two calls, and a store that fails."""

import contextlib
import errno
import io
import os
import random
import re
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = frozenset(
    {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}
)
_watching: "IoCalls | None" = None


class PowerCutError(BaseException):
    """The machine is off: nothing that the process does from now on reaches the disk."""


class IoCalls:
    """Counts the calls of this process that change files below a folder, and does something before one of them.

    Opening for writing, renames, deletions, new folders and links are seen through Python's audit events, ``fsync`` and
    ``write`` of descriptors, and the closing of Python's files, by replacing them. A file that is closed with an error
    is closed all the same, as on NFS. The threads of leases are left out: when they write depends on time.
    """

    def __init__(self, folder: Path, before: Callable[[int, str], None]) -> None:
        self.count = 0
        self._folder = folder
        self._before = before
        self._lock = threading.Lock()
        self.on_fsync: Callable[[int], None] = lambda descriptor: None

    def __enter__(self) -> "IoCalls":
        global _watching
        self._fsync, self._write, self._open = os.fsync, os.write, io.open
        os.fsync, os.write = self._fsynced, self._written  # type: ignore[assignment]
        io.open = self._opened  # type: ignore[assignment]
        _watching = self
        return self

    def __exit__(self, *_: object) -> None:
        global _watching
        _watching = None
        os.fsync, os.write, io.open = self._fsync, self._write, self._open  # type: ignore[assignment]

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event not in _CHANGES:
            return
        else:
            path = arguments[0]
        # Names relative to a descriptor are those of `shutil.rmtree`.
        if isinstance(path, str | bytes | os.PathLike) and (
            not (named := Path(os.fsdecode(path))).is_absolute() or named.is_relative_to(self._folder)
        ):
            self._call(event)

    def _fsynced(self, descriptor: int) -> None:
        if self._is_below(descriptor):
            self._call("fsync")
            self.on_fsync(descriptor)

    def _written(self, descriptor: int, content: Any) -> int:
        if self._is_below(descriptor):
            self._call("write")
        return self._write(descriptor, content)

    def _opened(self, *arguments: Any, **options: Any) -> Any:
        file = self._open(*arguments, **options)
        if file.writable() and self._is_below(file.fileno()):
            close = file.close

            def closed() -> None:
                is_first = not file.closed
                close()
                if is_first:
                    self._call("close")

            file.close = closed  # type: ignore[method-assign]
        return file

    def _is_below(self, descriptor: int) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(self._folder)
        return False

    def _call(self, event: str) -> None:
        if threading.current_thread().name == "mirrorspark-lease":
            return
        with self._lock:
            self.count += 1
            number = self.count
        self._before(number, event)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is not None:
        _watching.audit(event, arguments)


sys.addaudithook(_hook)


def failing(folder: Path, number: int) -> IoCalls:
    """Return calls of which number ``number`` below ``folder`` fails once: every second one by a full disk."""

    def fail(count: int, event: str) -> None:
        if count == number:
            code = errno.ENOSPC if number % 2 else errno.EIO
            raise OSError(code, os.strerror(code), f"call {count}: {event}")

    return IoCalls(folder, fail)


def killed_before(folder: Path, number: int, act: Callable[[], object]) -> bool:
    """Run ``act`` in a copy of this process, which is killed before call ``number`` below ``folder``.

    Returns:
        False if it has made fewer calls, and ended well.
    """

    def kill(count: int, event: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        status = 1
        with contextlib.suppress(BaseException), IoCalls(folder, kill):
            act()
            status = 0
        os._exit(status)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL), f"it failed before call {number}"
    return status == signal.SIGKILL


Survival = Literal["what was flushed", "all names, but no content that was not flushed"] | int


@dataclass
class Disk:
    """Content of a folder that would survive a power cut, by POSIX: only what ``fsync`` was called for.

    File systems differ in what else they write when. Two extremes are rebuilt: of names and contents alone what was
    flushed, or all names, with files empty whose content was not flushed. With a seed, of every folder the names that
    were flushed or those that are there, and of every file what was flushed, all, a part, zeros or nothing.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    listings: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)
    _kept: list[int] = field(default_factory=list)
    _cut: dict[int, dict[str, tuple[int, bool]]] | None = None
    _unflushed: dict[int, bytes] = field(default_factory=dict)

    def flush_all(self) -> None:
        """Take all that is there as flushed."""
        for path in (self.root, *self.root.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            self.flush(descriptor)
            os.close(descriptor)

    def flush(self, descriptor: int) -> None:
        """Take a file's content, or a folder's names, as flushed."""
        if self._cut is not None:
            return
        found = os.fstat(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        # While a file is open, no other gets its number.
        self._kept.append(os.open(path, os.O_RDONLY))
        if stat.S_ISDIR(found.st_mode):
            self.listings[found.st_ino] = _listing(path)
        else:
            self.contents[found.st_ino] = path.read_bytes()

    def cut(self) -> None:
        """Record the names, and the contents that are not flushed, when the power goes."""
        # In an order that is the same each time, whatever ids are in the names.
        paths = sorted(self.root.rglob("*"), key=lambda path: re.sub(r"[0-9a-f]{8,}", "#", str(path)))
        folders = [self.root, *(path for path in paths if path.is_dir())]
        self._cut = {folder.stat().st_ino: _listing(folder) for folder in folders}
        contents = {path.stat().st_ino: path.read_bytes() for path in paths if path.is_file()}
        self._unflushed = {entry: text for entry, text in contents.items() if self.contents.get(entry) != text}
        self._root = self.root.stat().st_ino

    def restart(self, survival: Survival) -> None:
        """Replace the content of the folder with what has survived."""
        assert self._cut is not None
        listings = self.listings if survival == "what was flushed" else self._cut
        if isinstance(survival, int):
            chance = random.Random(survival)
            for entry, content in self._unflushed.items():
                flushed, part = self.contents.get(entry, b""), content[: chance.randrange(len(content) + 1)]
                self.contents[entry] = chance.choice((flushed, content, part, bytes(len(content)), b""))
            listings = {
                folder: chance.choice((now, self.listings.get(folder, now))) for folder, now in self._cut.items()
            }
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self._rebuild(self.root, self._root, listings)
        for descriptor in self._kept:
            os.close(descriptor)
        self._kept.clear()

    def _rebuild(self, folder: Path, number: int, listings: dict[int, dict[str, tuple[int, bool]]]) -> None:
        for name, (entry, is_folder) in listings.get(number, {}).items():
            if is_folder:
                (folder / name).mkdir()
                self._rebuild(folder / name, entry, listings)
            else:
                (folder / name).write_bytes(self.contents.get(entry, b""))


def _listing(folder: Path) -> dict[str, tuple[int, bool]]:
    with os.scandir(folder) as entries:
        return {entry.name: (entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries}


def power_cut(disk: Disk, number: int) -> IoCalls:
    """Return calls that cut the power before call ``number``; ``disk`` has what was flushed until then."""

    def cut(count: int, event: str) -> None:
        if count >= number:
            if count == number:
                disk.cut()
            raise PowerCutError

    calls = IoCalls(disk.root, cut)
    calls.on_fsync = disk.flush
    return calls


Fault = Literal["refused", "done, but the answer is lost", "half of the body arrives", "no answer"]
CHANGES, READS = ("PUT", "POST", "DELETE"), ("GET", "HEAD")
# Longer than any client of these tests waits.
_SILENT_SECONDS = 60


class ThrottledStore:
    """An application (WSGI) of an S3 server that fails at some of the requests of some methods."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()
        self.count = 0
        self._methods: tuple[str, ...] = ()
        self._first = self._last = 0.0
        self._fault: Fault = "refused"
        self._is_over = threading.Event()

    @contextlib.contextmanager
    def failing(self, first: int, last: float, fault: Fault, methods: tuple[str, ...]) -> Iterator[None]:
        """Let the requests with the numbers from ``first`` to ``last`` fail while the block runs."""
        with self._lock:
            self.count, self._first, self._last, self._fault, self._methods = 0, first, last, fault, methods
            self._is_over.clear()
        try:
            yield
        finally:
            with self._lock:
                self._methods = ()
            self._is_over.set()

    def __call__(self, environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            is_counted = environment["REQUEST_METHOD"] in self._methods
            self.count += is_counted
            is_failing = is_counted and self._first <= self.count <= self._last
        if not is_failing:
            return self._application(environment, start_response)
        if self._fault == "half of the body arrives":
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0) // 2)
            start_response("400 Bad Request", [("Content-Type", "application/xml"), ("Connection", "close")])
            return [b"<Error><Code>RequestTimeout</Code><Message>The body did not arrive.</Message></Error>"]
        if self._fault == "done, but the answer is lost":
            list(self._application(environment, lambda *_: None))
        if self._fault == "no answer":
            self._is_over.wait(_SILENT_SECONDS)
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]


class StoredObjects:
    """The objects of a bucket of moto's server, which runs in this process, without a request for them."""

    def __init__(self, bucket: str) -> None:
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        self._server = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._bucket = self._server.get_bucket(bucket)

    def contents(self) -> dict[str, bytes]:
        """Return the content of every object by name; names that end in a slash are Arrow's marks of empty folders."""
        return {name: key.value for name, key in self._bucket.keys.items()}

    def copies(self) -> dict[str, tuple[bytes, dict[str, str]]]:
        """Return the content and the headers of every object, for :meth:`restore`."""
        return {name: (key.value, dict(key.metadata)) for name, key in self._bucket.keys.items()}

    def restore(self, copies: dict[str, tuple[bytes, dict[str, str]]]) -> None:
        """Replace all objects by copies, and remove uploads that were begun and never completed."""
        for name in list(self._bucket.keys):
            self._bucket.keys.pop(name)
        for upload in list(self._bucket.multiparts):
            del self._bucket.multiparts[upload]
        for name, (content, headers) in copies.items():
            self._server.put_object(self._bucket.name, name, content).set_metadata(dict(headers))

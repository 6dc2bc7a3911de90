"""Files on any store by URI: local disk, S3, Google and Azure storage, HDFS, and whatever fsspec knows."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

_LOCAL_SCHEMES = ("", "file")
# What pyarrow serves itself; every other scheme is fsspec's.
_ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_HADOOP_SPELLINGS = {"s3a": "s3", "s3n": "s3"}
_COPY_BYTES = 8 * 2**20


class StorageError(ValueError):
    """A location that no store here serves; the message says which and what to do."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a listing.

    Attributes:
        path: Where it is.
        bytes: Its size.
        modified_ns: When it was written, nanoseconds since the epoch; 0 where the store does not say.
    """

    path: "StoragePath"
    bytes: int
    modified_ns: int


@dataclass(frozen=True, order=True)
class StoragePath:
    """A file or folder on a store: a plain value that pickles; the store is opened where it is used.

    A URI may end in options of the store as a query (``s3://bucket/folder?endpoint_override=127.0.0.1:5000``); paths
    below it keep them. Credentials belong in the environment, never in a URI.

    Attributes:
        uri: Scheme, host and path, percent-encoded nowhere: spaces and unicode stand as they are. A local path has no
            scheme and is absolute.
        query: The store's options.
    """

    uri: str
    query: str = ""

    @classmethod
    def of(cls, location: "str | Path | StoragePath") -> "StoragePath":
        """Return the path that ``location`` names; a relative local one is taken from the working directory.

        Raises:
            StorageError: It is empty, or carries a password.
        """
        if isinstance(location, StoragePath):
            return location
        text = str(location)
        if not text:
            raise StorageError("an empty path names nothing; give a path or a URI")
        scheme, separator, rest = text.partition("://")
        if isinstance(location, Path) or not separator:
            local = unquote(text.removeprefix("file:")) if text.startswith("file:/") else text
            return cls(str(Path(local).absolute()))
        scheme = _HADOOP_SPELLINGS.get(scheme.lower(), scheme.lower())
        if scheme in _LOCAL_SCHEMES:
            return cls(str(Path(unquote("/" + rest.lstrip("/"))).absolute()))
        if urlsplit(f"{scheme}://{rest}").password is not None:
            raise StorageError(f"a {scheme}:// location carries a password; put credentials into the environment")
        path, _, query = rest.partition("?")
        return cls(f"{scheme}://{path.rstrip('/')}", query)

    def __str__(self) -> str:
        return f"{self.uri}?{self.query}" if self.query else self.uri

    def __truediv__(self, part: str) -> "StoragePath":
        return StoragePath(f"{self.uri.rstrip('/')}/{part}", self.query)

    @property
    def name(self) -> str:
        """The last part."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "StoragePath":
        """The folder that this is in."""
        return StoragePath(self.uri.rstrip("/").rpartition("/")[0] or "/", self.query)

    @property
    def is_local(self) -> bool:
        """Whether it lies in the local file system."""
        return "://" not in self.uri

    @property
    def local(self) -> Path:
        """The path as the operating system knows it.

        Raises:
            StorageError: It is on another store.
        """
        if not self.is_local:
            raise StorageError(f"{self} is not on a local disk; copy it there first")
        return Path(self.uri)

    def relative_to(self, folder: "StoragePath") -> str:
        """Return what follows ``folder`` in this path."""
        return self.uri.removeprefix(folder.uri.rstrip("/") + "/")

    def exists(self) -> bool:
        """Return whether there is a file or folder."""
        return self._type() != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Return whether there is a file."""
        return self._type() == fs.FileType.File

    def is_folder(self) -> bool:
        """Return whether there is a folder (on an object store: anything below it)."""
        return self._type() == fs.FileType.Directory

    def size(self) -> int:
        """Return the size of the file in bytes.

        Raises:
            FileNotFoundError: There is none.
        """
        store, path = self._open_store()
        found = store.get_file_info(path)
        if found.type != fs.FileType.File:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        return int(found.size)

    def files(self, *, recursive: bool = True) -> list[StoredFile]:
        """Return the files below this folder in the order of their paths, none where it does not exist."""
        store, path = self._open_store()
        listing = store.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=recursive))
        # Some of fsspec's stores answer with a leading slash that the question did not have.
        root = path.strip("/") + "/"
        return sorted(
            (
                StoredFile(self / found.path.lstrip("/").removeprefix(root), int(found.size), int(found.mtime_ns or 0))
                for found in listing
                if found.type == fs.FileType.File
            ),
            key=lambda file: file.path,
        )

    def open_read(self) -> pa.NativeFile:
        """Open the file for reading, at random too.

        Raises:
            FileNotFoundError: There is none.
            OSError: The store refuses.
        """
        store, path = self._open_store()
        return store.open_input_file(path)

    def open_stream(self) -> pa.NativeFile:
        """Open the file for reading from front to back, as it is stored: nothing is decompressed."""
        store, path = self._open_store()
        return store.open_input_stream(path, compression=None)

    def open_write(self) -> IO[bytes] | pa.NativeFile:
        """Open the file for writing from its beginning; its folder is made.

        On an object store the file appears when it is closed, on a disk at once: :meth:`write_bytes` and
        :meth:`rename` are for what must appear whole.
        """
        if self.is_local:
            # Python's file raises the disk's own error (no space left) from write, and can be flushed to disk.
            self.local.parent.mkdir(parents=True, exist_ok=True)
            return self.local.open("wb")
        store, path = self._open_store()
        return store.open_output_stream(path, compression=None)

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        with self.open_stream() as file:
            return bytes(file.read())

    def write_bytes(self, content: bytes) -> None:
        """Replace the file by ``content`` so that a crash leaves the former one or the new one, never a part."""
        if not self.is_local:
            with self.open_write() as file:
                file.write(content)
            return
        temporary = self.parent / f".{self.name}.{uuid4().hex}"
        try:
            with temporary.open_write() as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.local.replace(self.local)
        finally:
            temporary.local.unlink(missing_ok=True)

    def flush_to_disk(self) -> None:
        """Wait until the disk has the file, so that it outlives a power cut; an object store needs no asking."""
        if self.is_local:
            descriptor = os.open(self.local, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def make_folder(self) -> None:
        """Make the folder and those above it; an object store has no need of it."""
        if self.is_local:
            self.local.mkdir(parents=True, exist_ok=True)

    def rename(self, target: "StoragePath") -> None:
        """Give a file or folder another name on the same store.

        On a disk this is one step. An object store copies file by file and deletes afterwards, so there a crash may
        leave both.
        """
        if self.is_local:
            target.local.parent.mkdir(parents=True, exist_ok=True)
            self.local.replace(target.local)
            return
        store, path = self._open_store()
        _, target_path = target._open_store()
        if self.is_file():
            store.copy_file(path, target_path)
            store.delete_file(path)
            return
        files = self.files()
        for file in files:
            _, source = file.path._open_store()
            store.copy_file(source, f"{target_path}/{file.path.relative_to(self)}")
        self.delete()

    def delete(self) -> None:
        """Remove the file, or the folder with all it holds; nothing happens where there is none."""
        if self.is_local:
            if self.local.is_dir() and not self.local.is_symlink():
                shutil.rmtree(self.local, ignore_errors=True)
            else:
                self.local.unlink(missing_ok=True)
            return
        store, path = self._open_store()
        found = store.get_file_info(path).type
        if found == fs.FileType.File:
            store.delete_file(path)
        elif found == fs.FileType.Directory:
            store.delete_dir(path)

    def download(self, target: Path) -> None:
        """Copy the file to the local ``target``, which is whole when it appears."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid4().hex}")
        try:
            with self.open_stream() as source, temporary.open("wb") as file:
                shutil.copyfileobj(source, file, _COPY_BYTES)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def upload(self, source: Path) -> None:
        """Copy the local file ``source`` here; on a disk it is whole when it appears."""
        if self.is_local:
            StoragePath.of(source).download(self.local)
            return
        with source.open("rb") as content, self.open_write() as file:
            shutil.copyfileobj(content, file, _COPY_BYTES)

    def _type(self) -> Any:
        store, path = self._open_store()
        return store.get_file_info(path).type

    def _open_store(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        scheme, _, path = self.uri.partition("://")
        if scheme in _ARROW_SCHEMES:
            return _arrow_store(scheme, path, self.query)
        return _fsspec_store(scheme, path)


@contextmanager
def scratch_folder(parent: StoragePath, prefix: str) -> Iterator[StoragePath]:
    """Yield a new folder below ``parent`` and remove it, whatever happens."""
    folder = parent / f"{prefix}{uuid4().hex}"
    folder.make_folder()
    try:
        yield folder
    finally:
        folder.delete()


def _arrow_store(scheme: str, path: str, query: str) -> tuple[fs.FileSystem, str]:
    root, _, inside = path.partition("/")
    try:
        # The bucket alone, because from_uri wants the path percent-encoded, and its answer is not.
        store, root_path = fs.FileSystem.from_uri(f"{scheme}://{root}/?{query}" if query else f"{scheme}://{root}/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise StorageError(
            f"{scheme}://{path} cannot be opened: {error}; check the location and its options"
        ) from error
    # A bucket is part of an object store's path; a name node is not part of HDFS's.
    return store, f"{root_path.rstrip('/')}/{inside}" if inside else root_path


def _fsspec_store(scheme: str, path: str) -> tuple[fs.FileSystem, str]:
    import fsspec

    try:
        store = fsspec.filesystem(scheme)
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"no store here serves {scheme}://; use a local path, s3, gs, abfs or hdfs, or install the fsspec package "
            f"for {scheme} ({error})"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(store)), path

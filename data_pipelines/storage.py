"""Files on any store by URI: local disk, S3, Google and Azure storage, HDFS, and whatever fsspec knows."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
# Two letters at least: a drive of Windows has one.
_ONE_SLASH = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?!/)(?P<rest>.*)", re.DOTALL)
_COPY_BYTES = 8 * 2**20


class StorageError(ValueError):
    """A location that no store here serves; the message says which and what to do."""


class StoreUnreachableError(OSError, StorageError):
    """A store that does not answer when it is opened; it may later on, unlike a location that names none."""


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
        within: Local folder, this path or one above it, that is not made for a file below: :meth:`kept_within`.
    """

    uri: str
    query: str = ""
    within: str = field(default="", compare=False, repr=False)

    @classmethod
    def of(cls, location: "str | Path | StoragePath") -> "StoragePath":
        """Return the path that ``location`` names; a relative local one is taken from the working directory.

        ``~`` at its beginning is the user's home.

        Raises:
            StorageError: It is empty, has one slash after a scheme, or carries a password.
        """
        if isinstance(location, StoragePath):
            return location
        text = str(location)
        if not text:
            raise StorageError("an empty path names nothing; give a path or a URI")
        scheme, separator, rest = text.partition("://")
        if isinstance(location, Path) or not separator:
            return cls(str(_local_path(text).absolute()))
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
        return StoragePath(f"{self.uri.rstrip('/')}/{part}", self.query, self.within)

    @property
    def name(self) -> str:
        """The last part."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "StoragePath":
        """The folder that this is in."""
        uri = self.uri.rstrip("/").rpartition("/")[0] or "/"
        return StoragePath(uri, self.query, self.within if f"{uri}/".startswith(f"{self.within}/") else "")

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

    def is_in(self, folder: "StoragePath") -> bool:
        """Return whether it is ``folder`` or something below it; how their stores are reached does not matter."""
        return f"{self.uri}/".startswith(f"{folder.uri.rstrip('/')}/")

    def relative_to(self, folder: "StoragePath") -> str:
        """Return what follows ``folder`` in this path."""
        return self.uri.removeprefix(folder.uri.rstrip("/") + "/")

    def kept_within(self) -> "StoragePath":
        """Return this folder so that writing below it fails once it is gone, instead of making it again.

        Whoever removes the folder is then rid of it, though others may still write. An object store has no folders to
        make.
        """
        return StoragePath(self.uri, self.query, self.uri if self.is_local else "")

    def exists(self) -> bool:
        """Return whether there is a file or folder (on S3: a folder with a file somewhere below it)."""
        kind = self._type()
        return kind == fs.FileType.File or (kind == fs.FileType.Directory and self._is_more_than_a_mark())

    def is_file(self) -> bool:
        """Return whether there is a file."""
        return self._type() == fs.FileType.File

    def is_folder(self) -> bool:
        """Return whether there is a folder (on S3: one with a file somewhere below it)."""
        return self._type() == fs.FileType.Directory and self._is_more_than_a_mark()

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

    def folders(self) -> list["StoragePath"]:
        """Return the folders directly in this one in the order of their names, none where it does not exist."""
        store, path = self._open_store()
        listing = store.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = [found.path.rstrip("/").rpartition("/")[2] for found in listing if found.type == fs.FileType.Directory]
        return [self / name for name in sorted(names)]

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
            self.parent.make_folder()
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
        """Wait until the disk has the file, or which names a folder holds, so that it outlives a power cut.

        An object store needs no asking.
        """
        if self.is_local:
            descriptor = os.open(self.local, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def make_folder(self) -> None:
        """Make the folder and those above it; an object store has no need of it.

        Raises:
            FileNotFoundError: The folder that it is kept within is gone.
        """
        if not self.is_local:
            return
        if not self.within:
            self.local.mkdir(parents=True, exist_ok=True)
            return
        folder = Path(self.within)
        for part in self.local.relative_to(folder).parts:
            folder /= part
            try:
                folder.mkdir(exist_ok=True)
            except FileNotFoundError as error:
                problem = "the folder that it belongs into is gone: the write is over, or another program deleted it"
                raise FileNotFoundError(errno.ENOENT, problem, str(folder)) from error

    def rename(self, target: "StoragePath") -> None:
        """Give a file or folder another name on the same store.

        On a disk this is one step. An object store copies file by file and deletes afterwards, so there a crash may
        leave both.

        Raises:
            FileNotFoundError: There is none.
            OSError: The store refuses.
        """
        if self.is_local:
            target.parent.make_folder()
            self.local.replace(target.local)
            return
        store, path = self._open_store()
        _, target_path = target._open_store()
        if self.is_file():
            store.copy_file(path, target_path)
            store.delete_file(path)
            return
        files = self.files()
        if not files:
            raise FileNotFoundError(errno.ENOENT, "no such file or folder", str(self))
        for file in files:
            _, source = file.path._open_store()
            store.copy_file(source, f"{target_path}/{file.path.relative_to(self)}")
        self.delete()

    def delete(self) -> None:
        """Remove the file, or the folder with all it holds; nothing happens where there is none.

        Raises:
            OSError: The store refuses; a part of a folder may be gone.
        """
        if self.is_local:
            if self.local.is_dir() and not self.local.is_symlink():
                _delete_tree(self.local)
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

    def _is_more_than_a_mark(self) -> bool:
        """Whether what the store calls a folder has a file somewhere below; looks no further than the first.

        On S3 Arrow puts an empty object in the place of a folder whose last file it deletes. It could delete that
        one only together with whatever comes into the folder meanwhile, so it stays, and does not count.
        """
        if not self.uri.startswith("s3://"):
            return True
        store, path = self._open_store()
        waiting = [path]
        while waiting:
            found = store.get_file_info(fs.FileSelector(waiting.pop(), allow_not_found=True))
            if any(entry.type == fs.FileType.File for entry in found):
                return True
            waiting += [entry.path for entry in found]
        return False

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


Location = str | Path | StoragePath
"""What names a place in a call."""


def hadoop_uri(path: StoragePath, *given: Location) -> str:
    """Return a path as Hadoop, and so Spark, is told of it.

    Args:
        path: A location, or a path in it.
        given: Locations as they were given. Their scheme is kept: ``s3a`` and ``s3`` are the same to us, not to Hadoop.
    """
    if path.is_local:
        return f"file://{path.uri}"  # else it would be looked for in the default file system
    scheme, _, rest = path.uri.partition("://")
    spellings = [str(location).partition("://")[0] for location in given]
    spelled = next((one for one in spellings if _HADOOP_SPELLINGS.get(one.lower(), one.lower()) == scheme), scheme)
    return f"{spelled}://{rest}"


def hadoop_path(uri: str) -> StoragePath:
    """Return the path that Hadoop names, percent-encoded, with one slash or three where there is no host."""
    scheme, _, rest = unquote(uri).partition(":")
    scheme = _HADOOP_SPELLINGS.get(scheme.lower(), scheme.lower())
    if rest.startswith("//") and not rest.startswith("///"):
        return StoragePath(f"{scheme}:{rest}")
    path = "/" + rest.lstrip("/")
    if scheme == "dbfs":  # which Databricks mounts
        return StoragePath(path if path.startswith("/Volumes/") else f"/dbfs{path}")
    return StoragePath(path if scheme in _LOCAL_SCHEMES else f"{scheme}://{path}")


@contextmanager
def scratch_folder(parent: StoragePath, prefix: str) -> Iterator[StoragePath]:
    """Yield a new folder below ``parent`` and remove it, whatever happens."""
    folder = parent / f"{prefix}{uuid4().hex}"
    folder.make_folder()
    try:
        yield folder
    finally:
        folder.delete()


def _local_path(text: str) -> Path:
    """Return the path that a location without a host names."""
    if text.startswith("file:/"):
        return Path(unquote(text.removeprefix("file:")))
    one_slash = _ONE_SLASH.fullmatch(text)
    if one_slash:
        scheme, rest = one_slash["scheme"], one_slash["rest"]
        # pathlib makes one slash of two, so that a Path of a URI comes here as well.
        advice = {
            "dbfs": f"/dbfs/{rest}, where it is mounted",
            "hdfs": f"hdfs://NAMENODE:PORT/{rest}",
        }.get(scheme.lower(), f"{scheme}://{rest}, as a string")
        raise StorageError(f"{text} has one slash after {scheme}: and names no place; write {advice}")
    # A file may be called ~x; only what a shell takes for the home is one here.
    return Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text)


def _delete_tree(folder: Path) -> None:
    """Remove a folder with all it holds, others deleting in it at the same time."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            # Somebody was faster with a file or folder in it; the next round does not meet that one.
            continue


def _arrow_store(scheme: str, path: str, query: str) -> tuple[fs.FileSystem, str]:
    root, _, inside = path.partition("/")
    try:
        # The bucket alone, because from_uri wants the path percent-encoded, and its answer is not.
        store, root_path = fs.FileSystem.from_uri(f"{scheme}://{root}/?{query}" if query else f"{scheme}://{root}/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        # Arrow asks S3 for the bucket's region and connects to a name node here: that may fail for a while.
        kind = StoreUnreachableError if isinstance(error, OSError) else StorageError
        raise kind(f"{scheme}://{path} cannot be opened: {error}; check the location and its options") from error
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

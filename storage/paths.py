"""Files on any store by URI: local disk, S3, Google and Azure storage, HDFS, and every store that fsspec supports.

Arrow's file systems serve the first five without a further package, where fsspec alone would need ``s3fs``, ``gcsfs``
and ``adlfs``. Arrow alone would leave out all other stores, for which :func:`_fsspec_store` is all that there is.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from mirrorspark.clear_error import ClearError
from mirrorspark.storage.atomic_file import arriving, move, replaced

# The longest name of a file that Linux takes.
_NAME_BYTES = 255
LOCAL_SCHEMES = ("", "file")
# Schemes that pyarrow serves itself; fsspec serves all others.
_ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_HADOOP_SPELLINGS = {"s3a": "s3", "s3n": "s3"}
# At least two letters, because a Windows drive has one.
_ONE_SLASH = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?!/)(?P<rest>.*)", re.DOTALL)
_DENIED = re.compile(r"(access|permission).?denied|forbidden|\b403\b", re.IGNORECASE)
_COPY_BYTES = 8 * 2**20


class StorageError(ClearError, ValueError):
    """A location that is malformed or has an unsupported scheme."""


class StoreUnreachableError(OSError, StorageError):
    """A store that does not answer when it is opened; unlike a bad location, it may answer later."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a listing.

    Attributes:
        modified_ns: Time of the last write in nanoseconds since the epoch; 0 if the store does not report it.
    """

    path: "StoragePath"
    bytes: int
    modified_ns: int


@dataclass(frozen=True, order=True)
class StoragePath:
    """A file or folder on a store: a plain, picklable value. The store is opened on use.

    A URI may end in store options as a query (``s3://bucket/folder?endpoint_override=127.0.0.1:5000``); paths below it
    keep them. Credentials belong in the environment, never in a URI.

    Attributes:
        uri: Scheme, host and path without percent-encoding. A local path has no scheme and is absolute.
        query: The store's options.
        within: Local folder, this path or one above it, that writing never creates; see :meth:`kept_within`.
    """

    uri: str
    query: str = ""
    within: str = field(default="", compare=False, repr=False)

    @classmethod
    def of(cls, location: "str | Path | StoragePath") -> "StoragePath":
        """Return the path that ``location`` names; relative local paths start at the working directory.

        A leading ``~`` is the user's home.

        Raises:
            StorageError: The location is empty, has one slash after a scheme, or contains a password.
        """
        if isinstance(location, StoragePath):
            return location
        text = str(location)
        if not text:
            raise StorageError("an empty path names nothing; give a path or a URI")
        scheme, separator, rest = text.partition("://")
        if isinstance(location, Path) or not separator:
            return cls(str(_local_path(text).absolute()))
        scheme = known_scheme(scheme)
        if scheme in LOCAL_SCHEMES:
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
        """The last part of the path."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "StoragePath":
        """The folder that contains this path."""
        uri = self.uri.rstrip("/").rpartition("/")[0] or "/"
        return StoragePath(uri, self.query, self.within if f"{uri}/".startswith(f"{self.within}/") else "")

    @property
    def root(self) -> "StoragePath":
        """The root of the store: ``/``, a bucket, a name node."""
        return StoragePath("/" if self.is_local else "/".join(self.uri.split("/", 3)[:3]), self.query)

    @property
    def is_local(self) -> bool:
        """True if the path is in the local file system."""
        return "://" not in self.uri

    @property
    def local(self) -> Path:
        """The path as a ``pathlib.Path``.

        Raises:
            StorageError: The path is not in the local file system.
        """
        if not self.is_local:
            raise StorageError(f"{self} is not on a local disk; copy it there first")
        return Path(self.uri)

    def is_in(self, folder: "StoragePath") -> bool:
        """Return whether this path is ``folder`` or below it; store options are ignored."""
        return f"{self.uri}/".startswith(f"{folder.uri.rstrip('/')}/")

    def relative_to(self, folder: "StoragePath") -> str:
        """Return the part of this path after ``folder``."""
        return self.uri.removeprefix(folder.uri.rstrip("/") + "/")

    def kept_within(self) -> "StoragePath":
        """Return this path marked so that writing below it fails if the folder is missing; it is not created.

        A removed folder then stays removed, even if other processes still write. Object stores have no such folders.
        """
        return StoragePath(self.uri, self.query, self.uri if self.is_local else "")

    def exists(self) -> bool:
        """Return whether there is a file or folder (on S3: a folder with a file somewhere below it)."""
        kind = self._info().type
        return kind == fs.FileType.File or (kind == fs.FileType.Directory and self._is_real_folder())

    def is_file(self) -> bool:
        """Return whether there is a file."""
        return self._info().type == fs.FileType.File

    def is_folder(self) -> bool:
        """Return whether there is a folder (on S3: one with a file somewhere below it)."""
        return self._info().type == fs.FileType.Directory and self._is_real_folder()

    def existing(self, names: Sequence[str]) -> set[str]:
        """Return those of ``names`` at which there is something below this folder, as one request finds them.

        Names that the store forbids us to look at count as missing.
        """
        store, path = self._open_store()
        inside = {f"{path.rstrip('/')}/{name}": name for name in names}
        try:
            found = store.get_file_info(list(inside))
        except OSError as error:
            if not _is_denied(error):
                raise
            if len(names) == 1:
                return set()
            return {name for one in names for name in self.existing([one])}
        return {inside[info.path] for info in found if info.type != fs.FileType.NotFound}

    def size(self) -> int:
        """Return the size of the file in bytes.

        Raises:
            FileNotFoundError: There is no such file.
        """
        found = self._info()
        if found.type != fs.FileType.File:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        return int(found.size)

    def version(self) -> str:
        """Return the mark of the file's content: its ETag on an object store, elsewhere the time of the write.

        Empty on a store that has neither.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not self.is_local:
            with self.open_read() as file:
                described = {name.lower(): value for name, value in (file.metadata() or {}).items()}
            if etag := described.get("etag", described.get(b"etag")):
                return etag if isinstance(etag, str) else etag.decode()
        found = self._info()
        if found.type != fs.FileType.File:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        return str(found.mtime_ns or "")

    def files(self, *, recursive: bool = True) -> list[StoredFile]:
        """Return the files below this folder, sorted by path; none if the folder does not exist."""
        return [
            StoredFile(self / name, int(info.size), int(info.mtime_ns or 0))
            for name, info in self._listing(recursive=recursive)
            if info.type == fs.FileType.File
        ]

    def folders(self) -> list["StoragePath"]:
        """Return the folders directly in this one, sorted by name; none if this folder does not exist."""
        return [self / name for name, info in self._listing() if info.type == fs.FileType.Directory]

    def open_read(self) -> pa.NativeFile:
        """Open the file for reading with random access.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: The store refuses.
        """
        store, path = self._open_store()
        return store.open_input_file(path)

    def open_stream(self) -> pa.NativeFile:
        """Open the file for sequential reading of the stored bytes, without decompression."""
        store, path = self._open_store()
        return store.open_input_stream(path, compression=None)

    def open_write(self) -> IO[bytes] | pa.NativeFile:
        """Open the file for writing from its beginning; its folder is created.

        On an object store the file appears when it is closed, on a disk at once. Use :meth:`write_bytes` or
        :meth:`rename` for files that must appear complete.
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
        """Replace the content of the file in one step: a crash leaves the old or the new content, never a part."""
        if self.is_local:
            self.parent.make_folder()
        with replaced(self.local) if self.is_local else self.open_write() as file:
            file.write(content)

    def flush_to_disk(self) -> None:
        """Wait until the disk has the file, or the names in the folder, so that it survives a power cut.

        On an object store this does nothing.
        """
        if self.is_local:
            descriptor = os.open(self.local, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def make_folder(self) -> None:
        """Create the folder and its parents; on an object store this does nothing.

        Raises:
            FileNotFoundError: The folder in ``within`` is missing.
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
                problem = "the folder that it belongs in was removed: the write is over, or another program deleted it"
                raise FileNotFoundError(errno.ENOENT, problem, str(folder)) from error

    def rename(self, target: "StoragePath") -> None:
        """Rename a file or folder on the same store.

        On a disk this is one step. Without renames files are copied, then deleted, so a crash may leave both.

        Raises:
            FileNotFoundError: There is no such file or folder.
            OSError: The store refuses.
        """
        if self.is_local:
            target.parent.make_folder()
            move(self.local, target.local)
            return
        store, path = self._open_store()
        _, target_path = target._open_store()
        if self.is_file():
            store.move(path, target_path)
        elif self.is_folder():
            fs.copy_files(path, target_path, store, store)
            self.delete()
        else:
            raise FileNotFoundError(errno.ENOENT, "no such file or folder", str(self))

    def delete(self) -> None:
        """Remove the file, or the folder with all its content, if it exists.

        Raises:
            OSError: The store refuses; part of a folder may be gone.
        """
        if self.is_local:
            if self.local.is_dir() and not self.local.is_symlink():
                _delete_tree(self.local)
            else:
                self.local.unlink(missing_ok=True)
            return
        store, path = self._open_store()
        while (found := store.get_file_info(path).type) != fs.FileType.NotFound:
            try:
                store.delete_file(path) if found == fs.FileType.File else store.delete_dir(path)
            except FileNotFoundError:
                continue  # another process deleted it, or an entry of the folder, first
            return

    def download(self, target: Path) -> None:
        """Copy the file to the local ``target``, which is complete when it appears."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.open_stream() as source, arriving(target) as file:
            shutil.copyfileobj(source, file, _COPY_BYTES)

    def upload(self, source: Path) -> None:
        """Copy the local file ``source`` here; the copy is complete when it appears."""
        if self.is_local:
            self.parent.make_folder()
        whole = arriving(self.local) if self.is_local else self.open_write()
        with source.open("rb") as content, whole as file:
            shutil.copyfileobj(content, file, _COPY_BYTES)

    def _is_real_folder(self) -> bool:
        """Return whether a folder reported by the store contains a file somewhere below; stops at the first one.

        On S3 Arrow leaves an empty object as a marker for a folder whose last file it deletes. Deleting the marker
        could also delete files that have just been written to the folder, so it stays and is ignored.
        """
        if not self.uri.startswith("s3://"):
            return True
        found = self._listing()
        return any(info.type == fs.FileType.File for _, info in found) or any(
            (self / name)._is_real_folder() for name, _ in found
        )

    def _info(self) -> fs.FileInfo:
        store, path = self._open_store()
        return store.get_file_info(path)

    def _listing(self, *, recursive: bool = False) -> list[tuple[str, fs.FileInfo]]:
        """Return the entries below this path, each with its relative path."""
        store, path = self._open_store()
        root = path.rstrip("/") + "/"
        try:
            found = store.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=recursive))
            entries = [(info.path.removeprefix(root), info) for info in found]  # reading a path decodes it
        except (PermissionError, UnicodeDecodeError):
            if not self.is_local:
                raise
            # Another user may have made an entry in a shared folder that nobody else can read.
            readable = _readable_entries(self.local, recursive=recursive)
            entries = [(info.path.removeprefix(root), info) for info in readable]
        return sorted(entries, key=lambda entry: entry[0])

    def _open_store(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        scheme, _, path = self.uri.partition("://")
        if scheme in _ARROW_SCHEMES:
            return _arrow_store(scheme, path, self.query)
        return _fsspec_store(scheme, path)


Location = str | Path | StoragePath
"""A path argument in any accepted form."""


def known_scheme(scheme: str) -> str:
    """Return our spelling of a scheme: ``s3`` for Hadoop's ``s3a``."""
    return _HADOOP_SPELLINGS.get(scheme.lower(), scheme.lower())


def _local_path(text: str) -> Path:
    """Return the path that a location without a host names."""
    if text.startswith("file:/"):
        return Path(unquote(text.removeprefix("file:")))
    one_slash = _ONE_SLASH.fullmatch(text)
    if one_slash:
        scheme, rest = one_slash["scheme"], one_slash["rest"]
        # pathlib turns two slashes into one, so a Path made from a URI also ends up here.
        advice = {
            "dbfs": f"/dbfs/{rest}, where it is mounted",
            "hdfs": f"hdfs://NAMENODE:PORT/{rest}",
        }.get(scheme.lower(), f"{scheme}://{rest}, as a string")
        raise StorageError(f"{text} has one slash after {scheme}: and names no place; write {advice}")
    # A file may be called ~x, so only "~" and "~/..." stand for the home folder.
    return Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text)


def _readable_entries(folder: Path, *, recursive: bool) -> Iterator[fs.FileInfo]:
    """Yield the entries below a local folder without hidden ones that cannot be read or whose names are not UTF-8.

    Raises:
        PermissionError: A folder that is not hidden cannot be read.
        ValueError: A name that is not hidden is not UTF-8.
    """
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        is_hidden = entry.name.startswith((".", "_"))
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            if is_hidden:
                continue
            raise ValueError(f"{folder} has a name that is not UTF-8, {os.fsencode(entry.name)!r}; rename it") from None
        if entry.is_file():
            found = entry.stat()
            yield fs.FileInfo(entry.path, fs.FileType.File, mtime_ns=found.st_mtime_ns, size=found.st_size)
        elif entry.is_dir():
            yield fs.FileInfo(entry.path, fs.FileType.Directory)
            if recursive and not (is_hidden and not os.access(entry.path, os.R_OK | os.X_OK, effective_ids=True)):
                yield from _readable_entries(Path(entry.path), recursive=True)


def _is_denied(error: OSError) -> bool:
    """Return whether a store refuses because of rights, which most stores report to Arrow only as text."""
    return isinstance(error, PermissionError) or _DENIED.search(str(error)) is not None


def _delete_tree(folder: Path) -> None:
    """Remove a folder with all its content, even while other processes delete in it."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            # Another process deleted an entry first; the next round no longer lists it.
            continue


def _arrow_store(scheme: str, path: str, query: str) -> tuple[fs.FileSystem, str]:
    root, _, inside = path.partition("/")
    try:
        # Only the bucket is passed, because from_uri takes a percent-encoded path and returns a decoded one.
        store, root_path = fs.FileSystem.from_uri(f"{scheme}://{root}/?{query}" if query else f"{scheme}://{root}/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        # Arrow asks S3 for the bucket's region or connects to a name node here, which may fail temporarily.
        kind = StoreUnreachableError if isinstance(error, OSError) else StorageError
        raise kind(f"{scheme}://{path} cannot be opened: {error}; check the location and its options") from error
    # A bucket is part of an object store's path; a name node is not part of HDFS's.
    return store, f"{root_path.rstrip('/')}/{inside}" if inside else root_path


def _fsspec_store(scheme: str, path: str) -> tuple[fs.FileSystem, str]:
    from fsspec.core import url_to_fs

    try:
        store, inside = url_to_fs(f"{scheme}://{path}")
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"no store here serves {scheme}://; use a local path, s3, gs, abfs or hdfs, or install the fsspec package "
            f"for {scheme} ({error})"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(store)), inside


def leads_out(name: str) -> bool:
    """Return whether a relative name may leave its folder, or can name no file: zeros, half characters, 256 bytes.

    Names from foreign files must not decide where we read and write.
    """
    path = PurePosixPath(name)
    try:
        is_name = "\0" not in name and all(len(part.encode()) <= _NAME_BYTES for part in path.parts)
    except UnicodeEncodeError:
        return True
    return not is_name or path.is_absolute() or ".." in path.parts

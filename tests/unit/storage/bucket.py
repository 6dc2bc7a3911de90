"""An object store in memory: requests for one object or listing, each done at once and seen by all from then on."""

import io
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pytest
from pyarrow import fs

from mirrorspark.storage import paths
from mirrorspark.storage.publish import job, journal

T = TypeVar("T")


class Bucket(fs.FileSystemHandler):
    """The store; ``at_point`` is called before and after each request, but not for heartbeats."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.at_point: Callable[[], None] = lambda: None
        self._lock = threading.RLock()

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> "Bucket":
        """Return a new store that serves ``memory://`` to one request at a time of each process."""
        bucket = cls()
        system = fs.PyFileSystem(bucket)
        monkeypatch.setattr(paths, "_fsspec_store", lambda scheme, path: (system, path))
        for module in (job, journal):
            monkeypatch.setattr(module, "in_parallel", lambda work, items: [work(item) for item in items])
        return bucket

    def _request(self, act: Callable[[], T]) -> T:
        is_seen = threading.current_thread().name != "mirrorspark-lease"
        if is_seen:
            self.at_point()
        try:
            with self._lock:
                return act()
        except KeyError as error:
            raise FileNotFoundError(error.args[0]) from error
        finally:
            if is_seen:
                self.at_point()

    def _info(self, path: str) -> fs.FileInfo:
        if path in self.objects:
            return fs.FileInfo(path, fs.FileType.File, size=len(self.objects[path]))
        is_folder = any(name.startswith(f"{path}/") for name in self.objects)
        return fs.FileInfo(path, fs.FileType.Directory if is_folder else fs.FileType.NotFound)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._request(partial(self._info, path)) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        root = selector.base_dir.rstrip("/") + "/"

        def listing() -> list[fs.FileInfo]:
            inside = [name.removeprefix(root) for name in self.objects if name.startswith(root)]
            names = {name if selector.recursive else name.split("/")[0] for name in inside}
            return [self._info(root + name) for name in sorted(names)]

        return self._request(listing)

    def delete_file(self, path: str) -> None:
        self._request(lambda: self.objects.pop(path))

    def delete_dir(self, path: str) -> None:
        listed = self._request(lambda: [name for name in self.objects if name.startswith(f"{path}/")])
        for name in listed:
            self._request(partial(self.objects.pop, name, None))

    def move(self, src: str, dest: str) -> None:
        self._request(lambda: self.objects.__setitem__(dest, self.objects[src]))
        self._request(lambda: self.objects.pop(src, None))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(io.BytesIO(self._request(lambda: self.objects[path])), mode="r")

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        return pa.PythonFile(_Upload(lambda content: self._request(lambda: self.objects.__setitem__(path, content))))

    def get_type_name(self) -> str:
        return "bucket"

    def normalize_path(self, path: str) -> str:
        return path

    def _unused(self, *_: object) -> None:
        raise NotImplementedError

    create_dir = delete_dir_contents = delete_root_dir_contents = copy_file = _unused
    open_append_stream = open_input_file = _unused


class _Upload(io.BytesIO):
    """A body that is sent when the file is closed."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        super().__init__()
        self._put = put

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._put(content)

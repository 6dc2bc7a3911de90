"""T6: checksums of a checkpoint's files, computed in the background."""

import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorspark.callbacks.checkpoints import checksums
from mirrorspark.callbacks.checkpoints.checksums import FileChecksums


@pytest.mark.parametrize("has_thread", [True, False])
def test_a_checksum_is_computed_once_with_a_thread_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_thread: bool
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if not has_thread:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    files = {name: tmp_path / name for name in ("a", "b")}
    for name, path in files.items():
        path.write_text(name)
    found = FileChecksums(tmp_path)
    found.begin(list(files))
    assert {name: found.of(name) for name in files} == {
        name: f"crc32:{zlib.crc32(name.encode()):08x}" for name in files
    }
    for path in files.values():
        path.unlink()
    found.begin(list(files))
    assert found.of("a") == "crc32:e8b7be43"
    found.close()


def test_a_file_that_could_not_be_read_is_read_again(tmp_path: Path) -> None:
    found = FileChecksums(tmp_path)
    found.begin(["a"])
    with pytest.raises(FileNotFoundError):
        found.of("a")
    (tmp_path / "a").write_text("a")
    assert found.of("a") == "crc32:e8b7be43"
    found.close()


def test_closing_does_not_wait_for_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(path: Path, *, beat: Callable[[], None]) -> str:
        while True:
            beat()

    monkeypatch.setattr(checksums, "checksum_of", endless)
    found = FileChecksums(tmp_path)
    found.begin(["a"])
    found.close()

"""What is left of a small file when its writing fails."""

import errno
from pathlib import Path

import pytest

from mirrorspark.storage.atomic_file import write_atomically, write_when_changed


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "one")
    write_atomically(path, "two ü")
    assert path.read_text(encoding="utf-8") == "two ü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_equal_value_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_when_changed(path, "one")
    before = path.stat().st_ino
    write_when_changed(path, "one")
    assert path.stat().st_ino == before
    write_when_changed(path, "two")
    assert path.read_text() == "two"
    path.write_bytes(b"\xff\xfe torn")
    write_when_changed(path, "two")
    assert path.read_text() == "two"

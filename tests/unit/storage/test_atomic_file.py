"""Remains of a small file whose writing fails."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from mirrorspark.storage import atomic_file
from mirrorspark.storage.atomic_file import new_folder, write_atomically, write_when_changed
from mirrorspark.storage.paths import StoragePath
from tests.unit.storage.writes import without_renames


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


def test_what_a_killed_process_left_is_removed_by_the_next_that_replaces_the_file(tmp_path: Path) -> None:
    (tmp_path / f".run.json.{'0' * 32}").write_bytes(b"half")
    (tmp_path / f".other.json.{'0' * 32}").write_bytes(b"of another file")
    write_atomically(tmp_path / "run.json", "one")
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", f".other.json.{'0' * 32}"}


def test_a_new_folder_appears_at_the_end_and_what_a_killed_process_left_is_removed_but_not_one_in_use(
    tmp_path: Path,
) -> None:
    target, left = tmp_path / "3", tmp_path / f".3.{'0' * 32}"
    (left / "variables").mkdir(parents=True)
    (left / "variables" / "data").write_bytes(b"half")
    first, second = new_folder(target), new_folder(target)
    other = second.__enter__()
    (other / "half").mkdir()
    with first as whole:
        (whole / "data").write_bytes(b"whole")
        assert {*tmp_path.iterdir()} == {whole, other}
    assert {*tmp_path.iterdir()} == {target, other}
    with pytest.raises(OSError, match="not empty"):
        second.__exit__(None, None, None)
    assert [*tmp_path.iterdir()] == [target]
    assert [*target.iterdir()] == [target / "data"]


@pytest.mark.parametrize("way", ["download", "upload"])
def test_a_copy_of_many_files_does_not_list_the_folder_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """(S12) Copying 4,000 shards took 13 s instead of one."""
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_bytes(b"content")
    listed: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    if way == "download":
        StoragePath.of(source).download(target)
    else:
        StoragePath.of(target).upload(source)
    assert target.read_bytes() == b"content"
    assert listed == []
    assert list(target.parent.iterdir()) == [target]


def test_a_copy_that_fails_leaves_neither_a_part_nor_a_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StoragePath.of(tmp_path / "missing").download(tmp_path / "target")
    (tmp_path / "target").mkdir()
    (tmp_path / "source").write_bytes(b"content")
    with pytest.raises(IsADirectoryError):
        StoragePath.of(tmp_path / "source").download(tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_without_renames_a_new_folder_is_copied_with_its_uppermost_files_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_renames(monkeypatch)
    order: list[str] = []
    copy = atomic_file._copy_file

    def noted(source: Path, target: Path) -> None:
        order.append(str(target.relative_to(tmp_path)))
        copy(source, target)

    monkeypatch.setattr(atomic_file, "_copy_file", noted)
    with atomic_file.new_folder(tmp_path / "model") as whole:
        assert not whole.is_relative_to(tmp_path)
        (whole / "model" / "deep").mkdir(parents=True)
        for name in ("a.json", "model/deep/z", "model.json"):
            (whole / name).write_text(name)
    assert order == ["model/model/deep/z", "model/a.json", "model/model.json"]
    assert (tmp_path / "model" / "model" / "deep" / "z").read_text() == "model/deep/z"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(OSError, match="not empty"), atomic_file.new_folder(tmp_path / "model"):
        pass


def test_a_file_of_another_disk_replaces_one_while_that_is_read(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        source, target = Path(memory, "new"), tmp_path / "store.db"
        if Path(memory).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("the temporary folder is in memory, too")
        source.write_text("new")
        target.write_text("old")
        with target.open() as reader:
            atomic_file.move(source, target)
            assert reader.read() == "old"
        assert not source.exists()
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


def test_without_renames_a_file_is_replaced_by_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_renames(monkeypatch)
    for text in ("old", "new"):
        write_atomically(tmp_path / "state.json", text)
    assert (tmp_path / "state.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]

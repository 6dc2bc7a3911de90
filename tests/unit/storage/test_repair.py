"""Planted journals are refused, and a command shows and ends what is pending (T6)."""

import json
import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import (
    SUCCESS_FILE,
    ForeignStagingError,
    UnsafeJournalError,
    WrittenFile,
)
from mirrorspark.storage.publish.staging import open_write
from mirrorspark.storage.repair import main as repair
from tests.unit.storage.writes import (
    begin,
    half_published,
    kill_owner,
    listed,
    names_in,
    visible,
    write,
    written,
)


@pytest.fixture(params=["local", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    """Return a folder that does not exist yet on a disk or an object store."""
    return StoragePath.of(tmp_path / "t" if request.param == "local" else f"memory://store/{uuid4().hex}/t")


def plant(folder: StoragePath, **entries: object) -> None:
    open_write(folder)
    journal = {"files": [], "deletes": [], "replaced": [], "had_success": False, "is_moved": False} | entries
    (folder / "publish.json").write_bytes(json.dumps(journal).encode())


@pytest.mark.parametrize("path", ["../victim", "/victim", "a/../../victim", "..", "", "./victim", 3])
@pytest.mark.parametrize("entry", ["files", "deletes", "replaced"])
@pytest.mark.parametrize("is_moved", [True, False])
def test_a_journal_that_leaves_its_target_is_refused(
    target: StoragePath, path: object, entry: str, is_moved: bool
) -> None:
    victim = target.parent / "victim"
    victim.write_bytes(b"precious")
    (target / "part-0").write_bytes(b"old")
    staging = target / ".tfrecord-write-planted"
    plant(staging, **{entry: [path], "is_moved": is_moved})
    (staging / "replaced" / "victim").write_bytes(b"planted")

    with pytest.raises(
        UnsafeJournalError, match=r"publish\.json is not a valid journal of a write.*delete that folder"
    ):
        begin(target, "append")

    assert victim.read_bytes() == b"precious"
    assert visible(target) == {"part-0": b"old"}
    assert listed(target) == {"part-0": b"old"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', "\0" * 16])
def test_a_damaged_journal_is_refused(tmp_path: Path, content: str) -> None:
    staging = tmp_path / "t" / ".tfrecord-write-planted"
    staging.mkdir(parents=True)
    (staging / "publish.json").write_text(content)

    with pytest.raises(UnsafeJournalError, match="is not a valid journal of a write"):
        begin(tmp_path / "t", "append")


@pytest.mark.parametrize("place", ["below", "beside"])
def test_a_staging_folder_of_another_user_is_refused(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    staging = target / ".tfrecord-write-planted" if place == "below" else tmp_path / ".tfrecord-write-planted.t"
    plant(StoragePath.of(staging), deletes=["part-0"], is_moved=True)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    with pytest.raises(ForeignStagingError, match=r"by another user, and ignored.*planted"):
        begin(target, "append")

    assert visible(target) == {"part-0": b"old"}


@pytest.mark.parametrize("place", ["below", "beside"])
@pytest.mark.parametrize("is_moved", [True, False], ids=["committed", "begun"])
def test_a_strangers_journal_hides_only_files_of_the_stranger(
    tmp_path: Path, place: str, is_moved: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """S12: a journal planted in a folder where others may create files made all rows disappear."""
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old", "part-1": b"of the stranger"})
    staging = target / ".tfrecord-write-planted" if place == "below" else tmp_path / ".tfrecord-write-planted.t"
    names = ["part-0", "part-1"]
    plant(StoragePath.of(staging), is_moved=is_moved, **{"deletes" if is_moved else "files": names})
    assert listed(tmp_path) == {}, "a journal of the folder's owner counts"
    lstat, strangers = Path.lstat, {staging, staging / "publish.json", target / "part-1"}

    def owned(path: Path) -> os.stat_result:
        found = list(lstat(path))
        found[stat.ST_UID] += path in strangers
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", owned)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 2)
    for _ in range(2):
        assert listed(tmp_path) == {"t/part-0": b"old"}
    assert caplog.text.count("is by another user than the files that it hides") == 1
    strangers.clear()
    assert listed(tmp_path) == {}, "readers of other users' data follow the journals of those users"


def test_a_staging_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    elsewhere = StoragePath.of(tmp_path / "elsewhere")
    plant(elsewhere, deletes=["part-0"], is_moved=True)
    (tmp_path / "t" / ".tfrecord-write-planted").symlink_to(elsewhere.local)

    with pytest.raises(ForeignStagingError):
        begin(tmp_path / "t", "append")

    assert visible(tmp_path / "t") == {"part-0": b"old"}


def test_a_task_cannot_name_a_file_outside_the_target(tmp_path: Path) -> None:
    job = begin(tmp_path / "t", "append")
    files = [*write(job, {"part-0": b"0"}), WrittenFile("0", "../../victim", 1, 1, 1)]

    with pytest.raises(UnsafeJournalError, match="is not a path inside"):
        job.publish(files)


def test_repair_shows_and_applies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "t"
    assert repair([str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: no write is pending\n"
    written(target, "error", {"part-0": b"old"})
    dead = begin(target, "append")
    half_published(dead, "part-1", "part-2")
    kill_owner(dead)

    assert repair([str(target)]) == 0

    shown = capsys.readouterr().out
    assert f"{dead.staging}\n" in shown
    assert f"process {os.getpid()} on" in shown
    assert "a publish of 2 files that was cut off is to be taken back" in shown
    assert "--apply" in shown
    assert set(visible(target)) == {"part-0", "part-1"}

    assert repair([str(target), "--apply"]) == 0
    assert "done" in capsys.readouterr().out
    assert names_in(target) == [SUCCESS_FILE, "part-0"]


def test_repair_leaves_a_live_write_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = begin(tmp_path / "t", "append")

    assert repair([str(tmp_path / "t"), "--apply"]) == 1

    assert f"process {os.getpid()} on" in (shown := capsys.readouterr().out)
    assert "alive" in shown
    assert job.staging.exists()


def test_repair_refuses_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(StoragePath.of(tmp_path / "t" / ".tfrecord-write-planted"), deletes=["/etc/passwd"])

    assert repair([str(tmp_path / "t"), "--apply", "--watch-seconds", "0"]) == 1

    assert "error: " in capsys.readouterr().err

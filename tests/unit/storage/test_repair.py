"""Planted journals are refused, and a command shows and ends what is pending (T6)."""

import ast
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from mirrorspark.storage import lease
from mirrorspark.storage.lease import Timing
from mirrorspark.storage.listing import list_files
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import (
    SUCCESS_FILE,
    ForeignStagingError,
    SaveMode,
    UnsafeJournalError,
    WriteInProgressError,
    WriteJob,
    WrittenFile,
)
from mirrorspark.storage.publish.staging import open_write
from mirrorspark.storage.repair import main as repair
from tests.unit.storage.writes import (
    FakeTime,
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


def owned_by_a_stranger(monkeypatch: pytest.MonkeyPatch, *strangers: Path) -> None:
    """Have these entries belong to another user."""
    lstat = Path.lstat

    def owned(path: Path) -> os.stat_result:
        found = list(lstat(path))
        found[stat.ST_UID] += path in strangers
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", owned)


@pytest.mark.parametrize("mode", ["append", "overwrite"])
@pytest.mark.parametrize("is_moved", [True, False], ids=["committed", "begun"])
@pytest.mark.parametrize("place", ["below", "beside"])
def test_a_staging_folder_of_another_user_is_left_alone_and_blocks_no_write(
    tmp_path: Path, place: str, mode: str, is_moved: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    staging = target / ".tfrecord-write-planted" if place == "below" else tmp_path / ".tfrecord-write-planted.t"
    plant(StoragePath.of(staging), is_moved=is_moved, **{"deletes" if is_moved else "files": ["part-0", "part-1"]})
    owned_by_a_stranger(monkeypatch, staging)

    for _ in range(2):  # An append of either mode that a second write finds.
        written(target, mode, {"part-1": b"new"} if mode == "overwrite" else {f"part-{uuid4().hex}": b"new"})

    assert sorted(visible(target).values()) == ([b"new"] if mode == "overwrite" else [b"new", b"new", b"old"])
    if place == "beside" or mode == "append":
        assert (staging / "publish.json").exists(), "it is not ours to end"
    assert caplog.text.count("is left over from a write by another user, or a link, and was ignored") == 1


def test_a_journal_of_another_user_in_a_folder_of_ours_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    staging = target / ".tfrecord-write-planted"
    plant(StoragePath.of(staging), is_moved=True, deletes=["part-0"])
    owned_by_a_stranger(monkeypatch, staging / "publish.json")

    written(target, "append", {"part-1": b"new"})

    assert visible(target) == {"part-0": b"old", "part-1": b"new"}


def test_what_another_users_overwrite_holds_alone_is_not_lost_to_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", "overwrite")
    (job.staging / "whole" / "part-1").write_bytes(b"new")
    (tmp_path / "t").rename(job.staging.local / "former")
    kill_owner(job)
    with monkeypatch.context() as others:
        owned_by_a_stranger(others, job.staging.local)
        with pytest.raises(ForeignStagingError, match="by another user"):
            begin(tmp_path / "t", "append")

    written(tmp_path / "t", "append", {"part-2": b"next"})

    assert visible(tmp_path / "t") == {"part-0": b"old", "part-2": b"next"}


@pytest.mark.parametrize("owner", ["of the target", "a stranger"])
def test_an_overwrite_waits_for_a_living_write_of_the_targets_owner_and_for_no_strangers(
    tmp_path: Path, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    alive = begin(target, "append", Timing())  # below the target, which holds data
    strangers = [alive.staging.local, *([target] if owner == "of the target" else [])]
    # root may write anywhere, so this user is another one than root.
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 7)
    lstat = Path.lstat

    def owned(path: Path) -> os.stat_result:
        found = list(lstat(path))
        found[stat.ST_UID] += 9 if path in strangers else 7
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", owned)
    monkeypatch.setattr(lease, "lock_state", lambda path, user: "held")

    if owner == "of the target":
        with pytest.raises(WriteInProgressError, match="is writing to"):
            WriteJob.begin(StoragePath.of(target), SaveMode.OVERWRITE, driver=os.getppid(), timing=FakeTime().timing)
    else:
        written(target, "overwrite", {"part-1": b"new"})
        assert visible(target) == {"part-1": b"new"}
    alive.abort()


def in_a_child_as_nobody(work: Callable[[], object]) -> object:
    """Return the result of ``work`` in a process of a user without rights; skip where this user is not root."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            result = work()
        except BaseException as error:
            result = repr(error)
        os.write(writing, repr(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return ast.literal_eval(said)


@pytest.mark.process
@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_what_nobody_else_can_read_or_name_blocks_neither_writers_nor_readers(mode: str) -> None:
    """A user with umask 077 leaves such files, here with a name that is not UTF-8, a pipe and a broken link as well."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        shared, target = Path(folder), Path(folder, "t")
        shared.chmod(0o777)
        written(target, "error", {"part-0": b"old"})
        for place, end in ((target, ""), (shared, ".t")):
            (place / f".tfrecord-write-closed{end}").mkdir(0o700)
            (place / f".tfrecord-write-{os.fsdecode(bytes([255, 254]))}{end}").mkdir()
            os.mkfifo(place / f".tfrecord-write-pipe{end}")
            (place / f".tfrecord-write-link{end}").symlink_to("/nowhere")
            (place / f".tfrecord-write-file{end}").write_bytes(b"")
        (target / ".tfrecord-write-closed" / "lease.json").write_text("{}")
        for path in (target, *target.glob("part-*"), target / SUCCESS_FILE):
            os.chown(path, 65534, 65534)

        def work() -> dict[str, bytes]:
            assert listed(target) == {"part-0": b"old"}
            written(target, mode, {"part-1": b"new"})
            return visible(target)

        assert in_a_child_as_nobody(work) == (
            {"part-1": b"new"} if mode == "overwrite" else {"part-0": b"old", "part-1": b"new"}
        )


def test_a_visible_name_that_is_not_utf_8_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    (tmp_path / "t" / os.fsdecode(b"part-\xff")).write_bytes(b"more")

    with pytest.raises(ValueError, match="has a name that is not UTF-8"):
        list_files(tmp_path / "t")


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


def test_a_staging_folder_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    elsewhere = StoragePath.of(tmp_path / "elsewhere")
    plant(elsewhere, deletes=["part-0"], is_moved=True)
    (tmp_path / "t" / ".tfrecord-write-planted").symlink_to(elsewhere.local)

    written(tmp_path / "t", "append", {"part-1": b"new"})

    assert visible(tmp_path / "t") == {"part-0": b"old", "part-1": b"new"}
    assert (elsewhere / "publish.json").exists()


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


def test_repair_shows_a_strangers_write_and_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    staging = tmp_path / "t" / ".tfrecord-write-planted"
    plant(StoragePath.of(staging), deletes=["part-0"], is_moved=True)
    owned_by_a_stranger(monkeypatch, staging)

    assert repair([str(tmp_path / "t"), "--apply"]) == 0

    assert "is by another user, or a link: left alone" in capsys.readouterr().out
    assert (staging / "publish.json").exists()


def test_repair_refuses_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(StoragePath.of(tmp_path / "t" / ".tfrecord-write-planted"), deletes=["/etc/passwd"])

    assert repair([str(tmp_path / "t"), "--apply", "--watch-seconds", "0"]) == 1

    assert "error: " in capsys.readouterr().err

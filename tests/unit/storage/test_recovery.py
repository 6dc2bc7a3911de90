"""Remains of dead writers are removed or finished by anybody, on any host (T1, T6)."""

import json
import os
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest

from mirrorspark.storage.listing import list_files
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import (
    SUCCESS_FILE,
    SaveMode,
    WriteJob,
    WrittenFile,
    is_hidden,
)
from mirrorspark.storage.publish.journal import Journal
from mirrorspark.storage.publish.recovery import recover
from mirrorspark.storage.publish.staging import LEASE_FILE
from tests.unit.storage.writes import (
    FakeTime,
    begin,
    fail_at,
    half_published,
    in_place,
    kill_owner,
    kill_owner_elsewhere,
    killed_while_publishing,
    listed,
    names_in,
    visible,
    without_renames,
    write,
    written,
)


@pytest.fixture(params=["local", "mounted", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoragePath:
    """Return a folder that does not exist yet on a disk, a disk without renames, or an object store."""
    if request.param == "mounted":
        without_renames(monkeypatch)
    return StoragePath.of(f"memory://store/{uuid4().hex}/t" if request.param == "memory" else tmp_path / "t")


@pytest.mark.parametrize("mode", ["error", "append", "overwrite"])
@pytest.mark.parametrize("place", ["folder", "in place"])
def test_a_publish_killed_at_any_step_is_whole_or_not_there(
    target: StoragePath, mode: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(T1) Readers of ours see the old or the new data at once; after the next write all readers do."""
    if place == "in place":
        in_place(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    old = {} if mode == "error" else {"part-0": b"old", "day=1/part-1": b"old"}
    new = {"part-2": b"new", "day=2/part-3": b"new"}
    after = new if mode == "overwrite" else old | new
    step, was_killed, seen = 0, True, set()
    while was_killed:
        target.delete()
        if old:
            written(target, "error", old)
        job = begin(target, mode)
        was_killed = killed_while_publishing(job, write(job, new), step)
        kill_owner_elsewhere(job)

        at_once = listed(target)
        assert at_once in (old, after) or (place == "folder" and not target.exists()), step
        seen.add(at_once == after)
        written(target, "append", {"part-4": b"next"})

        assert visible(target) in (old | {"part-4": b"next"}, after | {"part-4": b"next"}), step
        if not was_killed or at_once == after:
            assert visible(target) == after | {"part-4": b"next"}, step
        assert not [file for file in target.files() if ".tfrecord-write" in str(file.path)]
        step += 1

    assert seen == {False, True}
    assert step > 5


def test_a_crashed_append_and_its_retry_leave_every_row_once(target: StoragePath) -> None:
    """The retry runs on the host of the dead driver or another one."""
    written(target, "error", {"part-0": b"old"})
    dead = begin(target, "append")
    half_published(dead, "part-1", "part-2")
    kill_owner_elsewhere(dead)
    assert set(visible(target)) == {"part-0", "part-1"}
    assert set(listed(target)) == {"part-0"}

    written(target, "append", {"part-1-again": b"0", "part-2-again": b"1"})

    assert visible(target) == {"part-0": b"old", "part-1-again": b"0", "part-2-again": b"1"}


def test_an_object_store_that_shows_half_a_publish_in_mode_error_is_written_by_the_next(tmp_path: Path) -> None:
    target = StoragePath.of(f"memory://store/{uuid4().hex}")
    dead = begin(target, "error")
    half_published(dead, "part-0", "part-1")
    kill_owner_elsewhere(dead)

    written(target, "error", {"part-2": b"whole"})

    assert visible(target) == {"part-2": b"whole"}


def test_a_publish_that_counts_is_finished(target: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place(monkeypatch)
    written(target, "error", {"part-0": b"old"})
    dead = begin(target, "overwrite")
    (target / "part-1").write_bytes(b"new")
    Journal(("part-1",), deletes=("part-0",)).commit(dead.staging, target)
    kill_owner_elsewhere(dead)
    assert listed(target) == {"part-1": b"new"}

    recover(target, timing=FakeTime().timing)

    assert visible(target) == {"part-1": b"new"}
    assert (target / SUCCESS_FILE).exists()


def test_a_publish_cut_off_between_two_renames_is_taken_back_by_the_next_write(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", "overwrite")
    (job.staging / "whole" / "part-1").write_bytes(b"new")
    (tmp_path / "t").rename(job.staging.local / "former")
    kill_owner(job)
    with pytest.raises(FileNotFoundError, match=r"cut off; python -m mirrorspark\.storage\.repair .*/t shows"):
        list_files(tmp_path / "t")

    recover(StoragePath.of(tmp_path / "t"))

    assert visible(tmp_path / "t") == {"part-0": b"old"}
    assert names_in(tmp_path) == ["t"]


@pytest.mark.parametrize("mode", ["append", "overwrite", "error"])
def test_the_next_write_removes_the_files_of_a_killed_driver(tmp_path: Path, mode: str) -> None:
    if mode != "error":
        written(tmp_path / "t", "error", {"part-0": b"old"})
    dead = begin(tmp_path / "t", mode)
    write(dead, {"part-1": b"never published"})
    lock = json.loads((dead.staging / LEASE_FILE).read_bytes())["lock"]
    left = kill_owner(dead)
    assert (Path(tempfile.gettempdir()) / f"mirrorspark-lease-{lock}").exists()

    before = visible(tmp_path / "t")
    written(tmp_path / "t", "append", {"part-2": b"next"})

    assert not left.exists()
    assert not [path for path in Path(tempfile.gettempdir()).glob("mirrorspark-lease-*") if lock in path.name]
    assert visible(tmp_path / "t") == {**before, "part-2": b"next"}


def test_a_retried_commit_does_not_publish_files_of_a_killed_one(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    first = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.OVERWRITE, name="query")
    (first.staging / "whole" / "part-1").write_bytes(b"of the commit that was killed")

    again = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.OVERWRITE, name="query")
    again.publish(write(again, {"part-2": b"new"}))

    assert visible(tmp_path / "t") == {"part-2": b"new"}


def test_a_batch_of_a_stream_whose_publish_was_killed_is_published_once(tmp_path: Path) -> None:
    """The driver lives on, the process that committed does not; batches of a query share one name."""
    target = StoragePath.of(tmp_path / "t")
    note = "_tfrecord_stream/query"

    def batch(number: int, attempt: str) -> tuple[WriteJob, list[WrittenFile]]:
        job = WriteJob.begin(target, SaveMode.APPEND, name="query")
        return job, write(
            job, {f"part-{attempt}": b"%d" % number, f"other-{attempt}": b"", note: b"%d" % number}, attempt
        )

    job, files = batch(0, "a")
    job.publish(files)
    job, files = batch(1, "b")
    Journal(tuple(file.path for file in files), replaced=(note,), had_success=True).begin(job.staging, target)
    for file in files[1:]:
        job.attempt_file(file.attempt, file.path).rename(target / file.path)

    job, files = batch(1, "c")
    assert (target / note).read_bytes() == b"0"
    assert visible(target) == {"part-a": b"0", "other-a": b""}
    job.publish(files)

    assert (target / note).read_bytes() == b"1"
    assert visible(target) == {"part-a": b"0", "other-a": b"", "part-c": b"1", "other-c": b""}


def test_a_sibling_whose_name_ends_alike_is_left_alone(tmp_path: Path) -> None:
    job = begin(tmp_path / "a.t", "append")
    left = kill_owner(job)

    recover(StoragePath.of(tmp_path / "t"))

    assert left.exists()


def publish_that_cannot_be_taken_back(job: WriteJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move ``part-1`` and fail at ``part-2``; then the store refuses to delete ``part-1``."""
    files = write(job, {"part-1": b"1", "part-2": b"2"})
    with monkeypatch.context() as broken:
        fail_at(broken, "rename", "part-2", OSError(5, "Input/output error"))
        fail_at(broken, "delete", "part-1", OSError(13, "Permission denied"))
        with pytest.raises(OSError, match="Input/output") as raised:
            job.publish(files)
        job.abort()
    assert "taking it back failed" in raised.value.__notes__[0]
    assert "part-1" in visible(job.target)
    assert "part-1" not in listed(job.target)


def test_a_failed_rollback_is_repeated_by_the_drivers_next_write(
    target: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(target, "error", {"part-0": b"old"})
    publish_that_cannot_be_taken_back(begin(target, "append"), monkeypatch)

    written(target, "append", {"part-4": b"again"})

    assert visible(target) == {"part-0": b"old", "part-4": b"again"}


def test_a_failed_rollback_is_repeated_when_the_write_is_aborted(
    target: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(target, "error", {"part-0": b"old"})
    job = begin(target, "append")
    publish_that_cannot_be_taken_back(job, monkeypatch)

    job.abort()

    assert {file.path.relative_to(target) for file in target.files()} == {"part-0", SUCCESS_FILE}


def test_an_overwrite_in_place_that_could_not_delete_the_old_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    in_place(monkeypatch)
    first = begin(target, "overwrite")
    files = write(first, {"part-1": b"1"})
    with monkeypatch.context() as broken:
        fail_at(broken, "delete", "part-0", OSError(13, "Permission denied"))
        with pytest.raises(PermissionError):
            first.publish(files)
        first.abort()
    assert visible(target) == {"part-0": b"old", "part-1": b"1"}
    assert listed(target) == {"part-1": b"1"}

    written(target, "overwrite", {"part-2": b"2"})

    assert visible(target) == {"part-2": b"2"}
    assert names_in(target) == [SUCCESS_FILE, "part-2"]


def test_an_overwrite_in_place_takes_back_what_began_and_died_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else that would be done later, and what it replaced would come back."""
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    in_place(monkeypatch)
    job = begin(target, "overwrite")
    half = begin(target, "append")
    half_published(half, "part-1", "part-2")
    kill_owner(half)

    job.publish(write(job, {"part-3": b"3"}))

    assert visible(target) == {"part-3": b"3"}
    assert names_in(target) == [SUCCESS_FILE, "part-3"]


def delete_all_but_remains(path: StoragePath, delete=StoragePath.delete) -> None:  # type: ignore[no-untyped-def]
    """Do as if a kill came before a staging folder whose write is over is deleted."""
    if "~" not in path.name:
        delete(path)


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_old_data_that_a_killed_driver_was_deleting_is_deleted_by_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", mode)
    files = write(job, {"part-1": b"new"})
    with monkeypatch.context() as broken:
        broken.setattr(StoragePath, "delete", delete_all_but_remains)
        job.publish(files)
    after = visible(tmp_path / "t")
    (left,) = [entry for entry in [*tmp_path.iterdir(), *(tmp_path / "t").iterdir()] if "~" in entry.name]

    recover(StoragePath.of(tmp_path / "t"))

    assert not left.exists()
    assert visible(tmp_path / "t") == after
    assert names_in(tmp_path) == ["t"]


def test_old_data_that_is_to_be_deleted_never_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = StoragePath.of(tmp_path / "t")
    written(target, "error", {"part-0": b"old"})
    job = WriteJob.begin(target, SaveMode.OVERWRITE, name="query")
    files = write(job, {"part-1": b"new"})
    with monkeypatch.context() as broken:
        broken.setattr(StoragePath, "delete", delete_all_but_remains)
        job.publish(files)
    target.delete()

    WriteJob.begin(target, SaveMode.OVERWRITE, name="query").abort()

    assert not target.exists()


@pytest.fixture
def bucket(s3_bucket: str) -> StoragePath:
    """Return a folder that does not exist yet on a server that speaks S3's protocol."""
    return StoragePath.of(f"s3://{s3_bucket}") / f"some table {uuid4().hex}"


@pytest.mark.process
def test_a_killed_drivers_files_on_an_object_store_are_removed(bucket: StoragePath) -> None:
    dead = begin(bucket, "append")
    write(dead, {"part-1": b"never published"})
    kill_owner(dead)
    assert bucket.files()
    assert all(is_hidden(file.path.relative_to(bucket)) for file in bucket.files())

    job = begin(bucket, "append")
    job.publish(write(job, {"part-2": b"next"}))

    assert {file.path.relative_to(bucket) for file in bucket.files()} == {"part-2", SUCCESS_FILE}


@pytest.mark.process
def test_half_a_publish_on_an_object_store_is_not_read_and_is_taken_back(bucket: StoragePath) -> None:
    dead = begin(bucket, "error")
    half_published(dead, "day=1/part-0", "day=1/part-1")
    kill_owner(dead)
    assert set(visible(bucket)) == {"day=1/part-0"}
    assert listed(bucket) == {}

    written(bucket, "error", {"day=2/part-2": b"whole"})

    assert {file.path.relative_to(bucket) for file in bucket.files()} == {"day=2/part-2", SUCCESS_FILE}


@pytest.mark.process
@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["error", "append", "overwrite"])
def test_a_publish_killed_at_any_step_on_an_object_store_is_whole_or_not_there(bucket: StoragePath, mode: str) -> None:
    old = {} if mode == "error" else {"part-0": b"old"}
    new = {"part-2": b"new", "part-3": b"new"}
    after = new if mode == "overwrite" else old | new
    step, was_killed = 0, True
    while was_killed:
        target = bucket / str(step)
        if old:
            written(target, "error", old)
        job = begin(target, mode)
        was_killed = killed_while_publishing(job, write(job, new), step)
        kill_owner(job)

        at_once = listed(target)
        assert at_once in (old, after), step
        recover(target)

        assert visible(target) == at_once, step
        assert {file.path.name for file in target.files() if is_hidden(file.path.name)} <= {SUCCESS_FILE}
        step += 1

    assert step > 5

"""Files appear at once or not at all, and a write that fails takes back what it has published (T1)."""

import logging
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import (
    SUCCESS_FILE,
    SaveMode,
    TargetExistsError,
    holds_data,
    is_hidden,
)
from mirrorspark.storage.publish.recovery import recover
from tests.unit.storage.writes import (
    FakeTime,
    begin,
    fail_at,
    in_place,
    kill_owner_elsewhere,
    listed,
    names_in,
    visible,
    without_renames,
    write,
    written,
)


def test_nothing_is_visible_before_publish_and_all_of_it_after(tmp_path: Path) -> None:
    target = tmp_path / "sales ü"
    job = begin(target, "error")
    files = write(job, {"part-0.tfrecord": b"a", "day=3/part-1.tfrecord": b"b"})
    write(job, {"part-0.tfrecord": b"of a failed attempt"}, attempt="1")

    assert visible(target) == {}
    assert not target.exists()

    job.publish(files)

    assert visible(target) == {"part-0.tfrecord": b"a", "day=3/part-1.tfrecord": b"b"}
    assert (target / SUCCESS_FILE).is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == [target.name]


def test_mode_error_refuses_a_target_with_data(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"a"})

    with pytest.raises(TargetExistsError, match="exists already; use mode 'overwrite'"):
        begin(tmp_path / "t", "errorifexists")


def test_mode_error_refuses_data_that_came_while_it_wrote(tmp_path: Path) -> None:
    late = begin(tmp_path / "t", "error")
    files = write(late, {"part-1": b"late"})
    written(tmp_path / "t", "error", {"part-0": b"first"})

    with pytest.raises(TargetExistsError):
        late.publish(files)

    assert visible(tmp_path / "t") == {"part-0": b"first"}


def test_without_renames_files_are_copied_and_appear_by_the_commit_of_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8: on a volume of Databricks nothing is lost, nor seen in part by our own readers."""
    without_renames(monkeypatch)
    target = tmp_path / "t"
    job = begin(target, "error")
    files = write(job, {"part-0": b"a", "day=3/part-1": b"b"})
    assert listed(target) == {}
    job.publish(files)
    written(target, "append", {"part-2": b"c"})
    assert visible(target) == {"part-0": b"a", "day=3/part-1": b"b", "part-2": b"c"}
    job = begin(target, "overwrite")
    files = write(job, {"part-8": b"x", "part-9": b"y"})
    with monkeypatch.context() as broken:
        fail_at(broken, "rename", "part-9", OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space"):
            job.publish(files)
    job.abort()
    assert visible(target) == listed(target) == {"part-0": b"a", "day=3/part-1": b"b", "part-2": b"c"}
    written(target, "overwrite", {"part-9": b"new"})
    assert visible(target) == {"part-9": b"new"}
    assert names_in(tmp_path) == ["t"]
    assert names_in(target) == [SUCCESS_FILE, "part-9"]


def test_without_renames_the_write_of_a_dead_owner_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_renames(monkeypatch)
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"a"})
    dead = begin(target, "append")
    files = write(dead, {"part-1": b"of a dead write"})
    kill_owner_elsewhere(dead)
    recover(StoragePath.of(target), timing=FakeTime().timing)
    assert names_in(target) == [SUCCESS_FILE, "part-0"]
    with pytest.raises(FileNotFoundError, match="removed before it was published"):
        dead.publish(files)


def test_an_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()

    written(tmp_path / "t", "error", {"part-0": b"a"})

    assert visible(tmp_path / "t") == {"part-0": b"a"}


def test_append_adds_to_what_is_there(tmp_path: Path) -> None:
    for number in range(3):
        written(tmp_path / "t", "append", {f"part-{number}": b"%d" % number})

    assert visible(tmp_path / "t") == {"part-0": b"0", "part-1": b"1", "part-2": b"2"}
    assert not [name for name in names_in(tmp_path) if name != "t"]


def test_two_appends_to_a_new_folder_at_the_same_time_both_count(tmp_path: Path) -> None:
    first, second = begin(tmp_path / "t", "append"), begin(tmp_path / "t", "append")
    files = write(first, {"part-0": b"0"}), write(second, {"part-1": b"1"})

    first.publish(files[0])
    second.publish(files[1])

    assert visible(tmp_path / "t") == {"part-0": b"0", "part-1": b"1"}


def test_overwrite_replaces_everything(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old", "day=1/part-0": b"old"})
    (tmp_path / "t").chmod(0o750)

    written(tmp_path / "t", "overwrite", {"part-9": b"new"})

    assert visible(tmp_path / "t") == {"part-9": b"new"}
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o750
    assert names_in(tmp_path) == ["t"]


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_readers_of_an_overwritten_folder_see_the_files_of_one_write(tmp_path: Path) -> None:
    """(T1) Between two renames there is no folder for a moment; never is there a part of one, nor files of two."""
    target = tmp_path / "t"
    written(target, "error", {"0-part": b"old", "0-other": b"old"})
    seen: set[frozenset[str]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            with suppress(FileNotFoundError), opened_folder(target) as folder:
                found = frozenset(os.listdir(folder)) - {SUCCESS_FILE}  # noqa: PTH208 - a Path has no descriptor
                # The files of a folder that is replaced between opening and listing it are being deleted.
                if os.path.samestat(os.fstat(folder), target.stat()):
                    seen.add(found)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(20):
            written(target, "overwrite", {f"{number}-part": b"new", f"{number}-other": b"new"})
    finally:
        over.set()
        reader.join()

    assert seen
    assert seen <= {frozenset({f"{number}-part", f"{number}-other"}) for number in range(20)}


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_two_renames_of_which_the_second_fails_leave_the_former_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    job = begin(target, "overwrite")
    files = write(job, {"part-1": b"new"})
    rename = StoragePath.rename

    def failing(self: StoragePath, goal: StoragePath) -> None:
        if self.name == "whole":
            raise error
        rename(self, goal)

    with monkeypatch.context() as broken:
        broken.setattr(StoragePath, "rename", failing)
        with pytest.raises(type(error)):
            job.publish(files)
    assert visible(target) == {"part-0": b"old"}

    job.abort()

    assert visible(target) == {"part-0": b"old"}
    assert names_in(tmp_path) == ["t"]


def test_abort_between_two_renames_puts_the_former_data_back(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", "overwrite")
    (tmp_path / "t").rename(job.staging.local / "former")

    job.abort()

    assert visible(tmp_path / "t") == {"part-0": b"old"}
    assert names_in(tmp_path) == ["t"]


def test_overwrite_through_a_link_replaces_the_folder_that_it_points_to(tmp_path: Path) -> None:
    written(tmp_path / "real", "error", {"part-0": b"old"})
    (tmp_path / "link").symlink_to("real")

    written(tmp_path / "link", "overwrite", {"part-1": b"new"})

    assert (tmp_path / "link").is_symlink()
    assert visible(tmp_path / "real") == {"part-1": b"new"}


def test_a_file_at_the_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"")

    with pytest.raises(NotADirectoryError, match="a write needs a folder as its target"):
        begin(tmp_path / "t", "overwrite")


def test_a_write_under_way_is_left_alone(tmp_path: Path) -> None:
    slow = begin(tmp_path / "t", "append")
    files = write(slow, {"part-1": b"slow"})

    written(tmp_path / "t", "append", {"part-2": b"fast"})
    slow.publish(files)

    assert visible(tmp_path / "t") == {"part-1": b"slow", "part-2": b"fast"}


def test_overwrite_in_place_adds_the_new_files_before_it_deletes_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point cannot be exchanged: its content is."""
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old", "day=1/part-0": b"old"})
    in_place(monkeypatch)
    found_while_deleting: list[bytes] = []
    delete = StoragePath.delete

    def looking(self: StoragePath) -> None:
        # The new file alone: the old ones are deleted side by side, so another may vanish under a look at all.
        if self.name == "part-0":
            found_while_deleting.append((target / "part-1").read_bytes())
        delete(self)

    monkeypatch.setattr(StoragePath, "delete", looking)

    written(target, "overwrite", {"part-1": b"new"})

    assert visible(target) == {"part-1": b"new"}
    assert not (target / "day=1").exists()
    assert found_while_deleting == [b"new", b"new"]


@pytest.mark.parametrize("mode", ["append", "overwrite"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_publish_that_fails_in_the_middle_takes_back_what_it_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, error: BaseException
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    in_place(monkeypatch)
    job = begin(target, mode)
    files = write(job, {"day=1/part-1": b"1", "part-2": b"2", "part-3": b"3"})

    with monkeypatch.context() as broken:
        fail_at(broken, "rename", "part-3", error)
        with pytest.raises(type(error)):
            job.publish(files)
    job.abort()

    assert visible(target) == {"part-0": b"old"}
    assert names_in(target) == [SUCCESS_FILE, "part-0"]
    written(target, "append", {"part-4": b"again"})
    assert visible(target) == {"part-0": b"old", "part-4": b"again"}


@pytest.mark.parametrize("mode", ["error", "append", "overwrite"])
def test_a_staged_file_that_vanished_fails_the_write(tmp_path: Path, mode: str) -> None:
    target = tmp_path / "t"
    if mode != "error":
        written(target, "error", {"part-0": b"old"})
    before = visible(target)
    job = begin(target, mode)
    files = write(job, {"part-1": b"1", "part-2": b"2"})
    job.attempt_file("0", "part-2").delete()

    with pytest.raises(FileNotFoundError, match=r"removed before it was published.*write again.*part-2"):
        job.publish(files)

    assert visible(target) == before


def test_a_staged_file_of_another_size_fails_the_write(tmp_path: Path) -> None:
    job = begin(tmp_path / "t", "append")
    files = write(job, {"part-1": b"1"})
    job.attempt_file("0", "part-1").write_bytes(b"")

    with pytest.raises(OSError, match="has 0 bytes, and 1 were written"):
        job.publish(files)

    assert visible(tmp_path / "t") == {}


def test_a_file_that_is_changed_while_it_is_published_fails_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", "append")
    files = write(job, {"part-1": b"1"})
    rename = StoragePath.rename

    def changing(self: StoragePath, goal: StoragePath) -> None:
        rename(self, goal)
        goal.write_bytes(b"longer")

    with monkeypatch.context() as broken:
        broken.setattr(StoragePath, "rename", changing)
        with pytest.raises(FileNotFoundError, match="should be published with 1 bytes and has 6"):
            job.publish(files)

    assert visible(tmp_path / "t") == {"part-0": b"old"}


def test_files_that_are_to_appear_last_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place(monkeypatch)
    target = tmp_path / "t"
    job = begin(target, "error")
    files = write(job, {"manifest.json": b"m", "index.json": b"i", **{f"part-{n}": b"%d" % n for n in range(4)}})
    seen: dict[str, set[str]] = {}
    rename, slow = StoragePath.rename, threading.Event()

    def slowed(self: StoragePath, goal: StoragePath) -> None:
        if self.name.startswith("part"):
            slow.wait(0.05)
        seen[goal.name] = set(visible(target))
        rename(self, goal)

    monkeypatch.setattr(StoragePath, "rename", slowed)

    job.publish(files, last=("index.json", "manifest.json"))

    parts = {f"part-{n}" for n in range(4)}
    assert seen["index.json"] == parts
    assert seen["manifest.json"] == {*parts, "index.json"}


def test_a_name_that_is_to_appear_last_is_one_of_the_files(tmp_path: Path) -> None:
    job = begin(tmp_path / "t", "error")
    with pytest.raises(ValueError, match=r"\['manifest.json'\] are named as last, but are not among the 1 files"):
        job.publish(write(job, {"part-0": b""}), last=("manifest.json",))


def test_old_data_that_cannot_be_deleted_is_told_of_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", "overwrite")
    files = write(job, {"part-1": b"new"})
    delete = StoragePath.delete

    def failing(self: StoragePath) -> None:
        if "~" in self.name:
            raise PermissionError(13, "Permission denied", str(self))
        delete(self)

    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        broken.setattr(StoragePath, "delete", failing)
        job.publish(files)

    assert visible(tmp_path / "t") == {"part-1": b"new"}
    assert "is left of a write that is over and cannot be deleted" in caplog.text
    assert "Permission denied" in caplog.text


@pytest.mark.parametrize("way", ["folder", "in place"])
def test_new_data_is_on_the_disk_before_old_data_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    if way == "in place":
        in_place(monkeypatch)
    job = begin(target, "overwrite")
    files = write(job, {"day=1/part-1": b"new"})
    events: list[int | str] = []
    flush, delete = StoragePath.flush_to_disk, StoragePath.delete

    def flushing(self: StoragePath) -> None:
        flush(self)
        events.append(self.local.stat().st_ino)

    def deleting(self: StoragePath) -> None:
        if self.exists() and (self.name == "part-0" or "~" in self.name):
            events.append("delete")
        delete(self)

    monkeypatch.setattr(StoragePath, "flush_to_disk", flushing)
    monkeypatch.setattr(StoragePath, "delete", deleting)

    job.publish(files)

    flushed = events[: events.index("delete")]
    expected = [target, target / "day=1", target / "day=1" / "part-1"]
    if way != "in place":
        expected.append(tmp_path)
    assert {path.stat().st_ino for path in expected} <= {*flushed}


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_task_that_writes_on_after_the_write_makes_no_folder(tmp_path: Path, mode: str) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", mode)
    write(job, {"part-1": b"1"})
    job = pickle.loads(pickle.dumps(job))  # noqa: S301 - as it came to the task
    job.abort()

    for path in ("part-2", "day=1/part-2"):
        with pytest.raises(FileNotFoundError):
            job.attempt_file("0", path).open_write()

    assert names_in(tmp_path) == ["t"]
    assert names_in(tmp_path / "t") == [SUCCESS_FILE, "part-0"]


def test_a_task_that_outlives_the_write_leaves_nothing(tmp_path: Path) -> None:
    """Spark reports a failed write first, and ends its other tasks then."""
    job = begin(tmp_path / "t", "append")
    job.abort()

    with pytest.raises(FileNotFoundError, match="the write is over"):
        job.begin_attempt("00001-late")
    assert names_in(tmp_path) == []


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    job = begin(tmp_path / "t", "append")
    write(job, {"part-0": b"a"})

    job.abort()

    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("part-0.tfrecord", False),
        ("_SUCCESS", True),
        (".part-0.crc", True),
        (".tfrecord-write-x/attempts/0/part-0", True),
        ("_temporary/part-0", True),
        ("_day=3/part-0", False),
        ("day=3/_part", True),
        ("a.b/c_d", False),
    ],
)
def test_hidden_files_are_those_that_spark_passes_over(path: str, hidden: bool) -> None:
    assert is_hidden(path) is hidden


def test_an_unknown_mode_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="mode 'replace' is none of error, append, overwrite, ignore"):
        SaveMode.of("replace")


def test_job_and_error_travel_to_tasks_and_back(tmp_path: Path) -> None:
    job = begin(tmp_path, "append")
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301

    error = pickle.loads(pickle.dumps(TargetExistsError(job.target)))  # noqa: S301

    assert error.target == job.target
    assert str(job.target) in str(error)


@pytest.fixture
def bucket(s3_bucket: str) -> StoragePath:
    """Return a folder that does not exist yet on a server that speaks the S3 protocol."""
    return StoragePath.of(f"s3://{s3_bucket}") / f"some table {uuid4().hex}"


@pytest.mark.process
def test_an_object_store_is_written_appended_and_overwritten(bucket: StoragePath) -> None:
    job = begin(bucket, "error")
    files = write(job, {"part-0": b"old", "day=3/part-1": b"old"})
    assert visible(bucket) == {}
    job.publish(files)
    assert visible(bucket) == {"part-0": b"old", "day=3/part-1": b"old"}
    with pytest.raises(TargetExistsError):
        begin(bucket, "error")

    job = begin(bucket, "append")
    job.publish(write(job, {"part-2": b"more"}))
    assert set(visible(bucket)) == {"part-0", "day=3/part-1", "part-2"}

    job = begin(bucket, "overwrite")
    job.publish(write(job, {"part-3": b"new"}))
    assert visible(bucket) == {"part-3": b"new"}
    assert {file.path.relative_to(bucket) for file in bucket.files()} == {"part-3", SUCCESS_FILE}


def test_a_failed_write_leaves_no_trace_on_an_object_store(bucket: StoragePath) -> None:
    """Arrow makes an empty object in the place of a folder whose files it deletes."""
    job = begin(bucket, "error")
    write(job, {"day=3/part-0": b"1"})

    job.abort()

    assert not bucket.exists()
    assert not holds_data(bucket)
    begin(bucket, "error").abort()


def test_an_append_to_an_object_store_that_fails_in_the_middle_is_taken_back(
    bucket: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begin(bucket, "error")
    job.publish(write(job, {"part-0": b"old"}))
    job = begin(bucket, "append")
    files = write(job, {"day=3/part-1": b"1", "part-2": b"2"})

    with monkeypatch.context() as broken:
        fail_at(broken, "rename", "part-2", OSError(5, "Slow down"))
        with pytest.raises(OSError, match="Slow down"):
            job.publish(files)
    job.abort()

    assert {file.path.relative_to(bucket) for file in bucket.files()} == {"part-0", SUCCESS_FILE}


def test_a_folder_holds_data_unless_there_is_nothing_but_writes_under_way(tmp_path: Path) -> None:
    assert not holds_data(StoragePath.of(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    begin(tmp_path / "t", "append")
    (tmp_path / "t" / ".tfrecord-write-0badcafe").mkdir()
    assert not holds_data(StoragePath.of(tmp_path / "t"))

    (tmp_path / "t" / "file").write_bytes(b"")

    assert holds_data(StoragePath.of(tmp_path / "t"))
    assert holds_data(StoragePath.of(tmp_path / "t" / "file"))

"""Files appear at once or not at all; what a dead driver left is finished or removed; old data is never lost (T1)."""

import logging
import pickle
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

import data_pipelines.publish as publish_module
from data_pipelines.publish import (
    SUCCESS_FILE,
    SaveMode,
    TargetExistsError,
    WriteJob,
    WrittenFile,
    holds_data,
    is_hidden,
    recover,
)
from data_pipelines.storage import StoragePath

Content = Mapping[str, bytes]


def write(job: WriteJob, content: Content, attempt: str = "0") -> list[WrittenFile]:
    """Do what a task does: write files below its attempt's folder."""
    files = []
    for path, text in content.items():
        file = job.attempt_folder(attempt) / path
        file.parent.make_folder()
        file.write_bytes(text)
        files.append(WrittenFile(attempt, path, rows=1, records=1, bytes=len(text)))
    return files


def visible(target: Path | StoragePath) -> dict[str, bytes]:
    """Return what a reader of ``target`` finds."""
    folder = StoragePath.of(target)
    found = {file.path.relative_to(folder): file.path for file in folder.files()}
    return {name: path.read_bytes() for name, path in found.items() if not is_hidden(name)}


def names_in(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def begin(target: Path | StoragePath, mode: str) -> WriteJob:
    return WriteJob.begin(StoragePath.of(target), SaveMode.of(mode))


def written(target: Path, mode: str, content: Content) -> None:
    job = begin(target, mode)
    job.publish(write(job, content))


def dead_process() -> int:
    """Return the id of a process that is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def as_if_driver_died(job: WriteJob) -> StoragePath:
    """Give the staging folder of ``job`` the name that it would have if its driver were gone."""
    return folder_as_if_driver_died(job.staging)


def folder_as_if_driver_died(staging: StoragePath) -> StoragePath:
    owner = publish_module._owner(None)
    place, _, started = owner.rsplit("-", 2)
    name = staging.name.replace(owner, f"{place}-{dead_process()}-{started}")
    staging.rename(staging.parent / name)
    return staging.parent / name


def fail_at(monkeypatch: pytest.MonkeyPatch, method: str, name: str, error: BaseException) -> None:
    """Make ``method`` of every path raise ``error`` where the path, or the one it is renamed to, has that name."""
    real = getattr(StoragePath, method)

    def failing(self: StoragePath, *more: StoragePath) -> object:
        if name in (self.name, *(path.name for path in more)):
            raise error
        return real(self, *more)

    monkeypatch.setattr(StoragePath, method, failing)


def delete_all_but_remains(path: StoragePath, delete: Callable[[StoragePath], None] = StoragePath.delete) -> None:
    """Do as if a kill came before a staging folder whose write is over is deleted."""
    if "~" not in path.name:
        delete(path)


def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an overwrite do what it does at a mount point."""
    monkeypatch.setattr(publish_module, "_takes_name_at_once", lambda target, mode: False)


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


def test_overwrite_never_leaves_the_target_without_data(tmp_path: Path) -> None:
    """(T1) Whenever a reader looks there is a folder, and one write's files: two folders are exchanged in one step."""
    target = tmp_path / "t"
    written(target, "error", {"0-part": b"old"})
    seen: set[frozenset[str]] = set()
    missing: list[FileNotFoundError] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                # A folder that is replaced between opening and listing it is empty by then.
                seen.add(frozenset(name.partition("-")[0] for name in names_in(target) if name != SUCCESS_FILE))
            except FileNotFoundError as error:
                missing.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(20):
            written(target, "overwrite", {f"{number}-part": b"new", f"{number}-other": b"new"})
    finally:
        over.set()
        reader.join()

    assert not missing
    assert all(len(writes) <= 1 for writes in seen)


def test_a_disk_that_cannot_exchange_folders_renames_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    monkeypatch.setattr(publish_module, "_exchange", lambda left, right: False)

    written(tmp_path / "t", "overwrite", {"part-1": b"new"})

    assert visible(tmp_path / "t") == {"part-1": b"new"}


def test_a_publish_cut_off_between_two_renames_is_finished_by_the_next_write(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", "overwrite")
    write(job, {"part-1": b"new"})
    whole = job.staging.local / "whole"
    whole.mkdir()
    (job.attempt_folder("0") / "part-1").local.rename(whole / "part-1")
    (tmp_path / "t").rename(job.staging.local / "former")
    as_if_driver_died(job)

    recover(StoragePath.of(tmp_path / "t"))

    assert visible(tmp_path / "t") == {"part-1": b"new"}
    assert names_in(tmp_path) == ["t"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_two_renames_of_which_the_second_fails_leave_the_former_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    job = begin(target, "overwrite")
    files = write(job, {"part-1": b"new"})
    rename = Path.rename

    def failing(self: Path, goal: Path) -> Path:
        if self.name == "whole":
            raise error
        return rename(self, goal)

    with monkeypatch.context() as broken:
        broken.setattr(publish_module, "_exchange", lambda left, right: False)
        broken.setattr(Path, "rename", failing)
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


def test_what_is_left_of_a_killed_commit_is_not_published_by_the_one_that_is_tried_again(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    first = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.OVERWRITE, name="query")
    (first.staging / "whole" / "part-1").write_bytes(b"of the commit that was killed")

    again = WriteJob.begin(StoragePath.of(tmp_path / "t"), SaveMode.OVERWRITE, name="query")
    again.publish(write(again, {"part-2": b"new"}))

    assert visible(tmp_path / "t") == {"part-2": b"new"}


def test_overwrite_through_a_link_replaces_the_folder_that_it_points_to(tmp_path: Path) -> None:
    written(tmp_path / "real", "error", {"part-0": b"old"})
    (tmp_path / "link").symlink_to("real")

    written(tmp_path / "link", "overwrite", {"part-1": b"new"})

    assert (tmp_path / "link").is_symlink()
    assert visible(tmp_path / "real") == {"part-1": b"new"}


def test_a_file_at_the_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"")

    with pytest.raises(NotADirectoryError, match="a file is where the folder"):
        begin(tmp_path / "t", "overwrite")


@pytest.mark.parametrize("mode", ["append", "overwrite", "error"])
def test_what_a_killed_driver_left_is_removed_by_the_next_write(tmp_path: Path, mode: str) -> None:
    if mode != "error":
        written(tmp_path / "t", "error", {"part-0": b"old"})
    dead = begin(tmp_path / "t", mode)
    write(dead, {"part-1": b"never published"})
    left = as_if_driver_died(dead)

    before = visible(tmp_path / "t")
    written(tmp_path / "t", "append", {"part-2": b"next"})

    assert not left.exists()
    assert visible(tmp_path / "t") == {**before, "part-2": b"next"}


def test_a_write_under_way_is_left_alone(tmp_path: Path) -> None:
    slow = begin(tmp_path / "t", "append")
    files = write(slow, {"part-1": b"slow"})

    written(tmp_path / "t", "append", {"part-2": b"fast"})
    slow.publish(files)

    assert visible(tmp_path / "t") == {"part-1": b"slow", "part-2": b"fast"}


def test_a_write_of_another_host_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "t" / ".tfrecord-write-some-other-host-1-1-0badcafe"
    elsewhere.mkdir(parents=True)

    recover(StoragePath.of(tmp_path / "t"))

    assert elsewhere.is_dir()


def test_a_sibling_whose_name_ends_alike_is_left_alone(tmp_path: Path) -> None:
    job = begin(tmp_path / "a.t", "append")
    write(job, {"part-0": b"a"})
    left = as_if_driver_died(job)

    recover(StoragePath.of(tmp_path / "t"))

    assert left.exists()


def test_an_append_whose_driver_died_while_publishing_is_finished_by_the_next_write(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    dead = begin(tmp_path / "t", "append")
    write(dead, {"part-1": b"1", "part-2": b"2"})
    files = tuple(WrittenFile("0", name, rows=1, records=1, bytes=1) for name in ("part-1", "part-2"))
    publish_module._Journal(files).save(dead.staging)
    (dead.attempt_folder("0") / "part-1").rename(StoragePath.of(tmp_path / "t" / "part-1"))
    as_if_driver_died(dead)

    recover(StoragePath.of(tmp_path / "t"))

    assert visible(tmp_path / "t") == {"part-0": b"old", "part-1": b"1", "part-2": b"2"}


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


def test_what_could_not_be_taken_back_at_first_is_by_the_next_write_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    publish_that_cannot_be_taken_back(begin(tmp_path / "t", "append"), monkeypatch)

    written(tmp_path / "t", "append", {"part-4": b"again"})

    assert visible(tmp_path / "t") == {"part-0": b"old", "part-4": b"again"}


def test_what_could_not_be_taken_back_at_first_is_after_the_drivers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    job = begin(tmp_path / "t", "append")
    publish_that_cannot_be_taken_back(job, monkeypatch)
    as_if_driver_died(job)

    recover(StoragePath.of(tmp_path / "t"))

    assert visible(tmp_path / "t") == {"part-0": b"old"}
    assert names_in(tmp_path / "t") == [SUCCESS_FILE, "part-0"]


def test_an_overwrite_in_place_that_could_not_delete_the_old_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the journal of the first would be finished at the end, its files being gone."""
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

    written(target, "overwrite", {"part-2": b"2"})
    as_if_driver_died(first)
    recover(StoragePath.of(target))

    assert visible(target) == {"part-2": b"2"}


def test_an_overwrite_in_place_takes_back_what_another_publish_of_the_driver_left_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be finished at the end, and rows come back that were overwritten."""
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    half = begin(target, "append")
    publish_module._Journal(tuple(write(half, {"part-1": b"1"}))).save(half.staging)
    in_place(monkeypatch)

    written(target, "overwrite", {"part-2": b"2"})
    as_if_driver_died(half)
    recover(StoragePath.of(target))

    assert visible(target) == {"part-2": b"2"}


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
    (job.staging / "replaced" / note).write_bytes(b"0")
    publish_module._Journal(tuple(files), replaced=(note,), had_success=True).save(job.staging)
    for file in files[1:]:
        job.attempt_file(file.attempt, file.path).rename(target / file.path)

    job, files = batch(1, "c")
    assert (target / note).read_bytes() == b"0"
    assert visible(target) == {"part-a": b"0", "other-a": b""}
    job.publish(files)

    assert (target / note).read_bytes() == b"1"
    assert visible(target) == {"part-a": b"0", "other-a": b"", "part-c": b"1", "other-c": b""}


@pytest.mark.parametrize("mode", ["error", "append", "overwrite"])
def test_a_staged_file_that_vanished_fails_the_write(tmp_path: Path, mode: str) -> None:
    target = tmp_path / "t"
    if mode != "error":
        written(target, "error", {"part-0": b"old"})
    before = visible(target)
    job = begin(target, mode)
    files = write(job, {"part-1": b"1", "part-2": b"2"})
    job.attempt_file("0", "part-2").delete()

    with pytest.raises(FileNotFoundError, match=r"gone before it was published.*write again.*part-2"):
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


def test_a_publish_that_was_cut_off_and_lost_a_file_says_what_to_do(tmp_path: Path) -> None:
    written(tmp_path / "t", "error", {"part-0": b"old"})
    dead = begin(tmp_path / "t", "append")
    files = write(dead, {"part-1": b"1"})
    publish_module._Journal(tuple(files)).save(dead.staging)
    dead.attempt_file("0", "part-1").delete()
    left = as_if_driver_died(dead)

    with pytest.raises(FileNotFoundError, match=r"is gone.*to give it up"):
        begin(tmp_path / "t", "append")

    assert left.exists()


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
    with pytest.raises(ValueError, match=r"\['manifest.json'\] are to appear last and are none of the 1 files"):
        job.publish(write(job, {"part-0": b""}), last=("manifest.json",))


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
    folder_as_if_driver_died(StoragePath.of(left))

    recover(StoragePath.of(tmp_path / "t"))

    assert not left.exists()
    assert visible(tmp_path / "t") == after
    assert names_in(tmp_path) == ["t"]


def test_old_data_that_is_to_be_deleted_never_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = StoragePath.of(tmp_path / "t")
    written(target.local, "error", {"part-0": b"old"})
    job = WriteJob.begin(target, SaveMode.OVERWRITE, name="query")
    files = write(job, {"part-1": b"new"})
    with monkeypatch.context() as broken:
        broken.setattr(publish_module, "_exchange", lambda left, right: False)
        broken.setattr(StoragePath, "delete", delete_all_but_remains)
        job.publish(files)
    target.delete()

    WriteJob.begin(target, SaveMode.OVERWRITE, name="query").abort()

    assert not target.exists()


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


@pytest.mark.parametrize("place", ["vm-00000000", None])
def test_a_write_of_another_container_of_the_same_name_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    """Process ids mean something in their own namespace, and since the boot; where neither is known, nowhere."""
    job = begin(tmp_path / "t", "append")
    left = as_if_driver_died(job)
    monkeypatch.setattr(publish_module, "_place", lambda: place)

    recover(StoragePath.of(tmp_path / "t"))

    assert left.exists()


def test_the_place_of_a_driver_is_its_boot_and_its_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boot").write_text("1")
    (tmp_path / "namespace").symlink_to("pid:[4026531836]")
    monkeypatch.setattr(publish_module, "_BOOT_ID_FILE", tmp_path / "boot")
    monkeypatch.setattr(publish_module, "_NAMESPACE_FILE", tmp_path / "namespace")
    places = {publish_module._place()}
    (tmp_path / "boot").write_text("2")
    places.add(publish_module._place())
    (tmp_path / "namespace").unlink()
    (tmp_path / "namespace").symlink_to("pid:[4026532000]")
    places.add(publish_module._place())

    assert len(places) == 3

    (tmp_path / "boot").unlink()
    assert publish_module._place() is None


@pytest.mark.parametrize("way", ["exchange", "two renames", "in place"])
def test_new_data_is_on_the_disk_before_old_data_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    target = tmp_path / "t"
    written(target, "error", {"part-0": b"old"})
    if way == "two renames":
        monkeypatch.setattr(publish_module, "_exchange", lambda left, right: False)
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
    """Spark tells of a failed write first, and ends its other tasks then."""
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


def test_a_killed_drivers_files_on_an_object_store_are_removed(bucket: StoragePath) -> None:
    dead = begin(bucket, "append")
    write(dead, {"part-1": b"never published"})
    as_if_driver_died(dead)
    assert bucket.files()

    job = begin(bucket, "append")
    job.publish(write(job, {"part-2": b"next"}))

    assert {file.path.relative_to(bucket) for file in bucket.files()} == {"part-2", SUCCESS_FILE}


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
    (tmp_path / "t" / ".tfrecord-write-elsewhere-1-1-0badcafe").mkdir()
    assert not holds_data(StoragePath.of(tmp_path / "t"))

    (tmp_path / "t" / "file").write_bytes(b"")

    assert holds_data(StoragePath.of(tmp_path / "t"))
    assert holds_data(StoragePath.of(tmp_path / "t" / "file"))

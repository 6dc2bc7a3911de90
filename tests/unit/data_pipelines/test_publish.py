"""Files appear at once or not at all; what a dead driver left is finished or removed; old data is never lost (T1)."""

import json
import pickle
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

import data_pipelines.publish as publish_module
from data_pipelines.publish import SUCCESS_FILE, SaveMode, TargetExistsError, WriteJob, WrittenFile, is_hidden, recover
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
    owner = publish_module._owner(None)
    host, _, started = owner.rsplit("-", 2)
    name = job.staging.name.replace(owner, f"{host}-{dead_process()}-{started}")
    job.staging.rename(job.staging.parent / name)
    return job.staging.parent / name


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
    moves = [[f"attempts/0/{name}", name] for name in ("part-1", "part-2")]
    (dead.staging / "publish.json").write_bytes(json.dumps({"moves": moves, "deletes": []}).encode())
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
    monkeypatch.setattr(publish_module, "_takes_name_at_once", lambda target, mode: False)
    found_while_deleting: list[dict[str, bytes]] = []
    delete = StoragePath.delete

    def looking(self: StoragePath) -> None:
        if self.name == "part-0":
            found_while_deleting.append(visible(target))
        delete(self)

    monkeypatch.setattr(StoragePath, "delete", looking)

    written(target, "overwrite", {"part-1": b"new"})

    assert visible(target) == {"part-1": b"new"}
    assert not (target / "day=1").exists()
    assert len(found_while_deleting) == 2
    assert all(found["part-1"] == b"new" for found in found_while_deleting)


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
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[StoragePath]:
    """Yield a bucket of a server that speaks the S3 protocol."""
    from moto.server import ThreadedMotoServer  # type: ignore[import-untyped]
    from pyarrow import fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
    # The server's buckets outlive it: they are this process's.
    name = f"lake-{uuid4().hex}"
    store.create_dir(name)
    yield StoragePath.of(f"s3://{name}/some table?endpoint_override={host}:{port}&scheme=http")
    server.stop()


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

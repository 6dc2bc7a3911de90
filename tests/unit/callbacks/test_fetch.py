"""Checkpoints from an object store on the local disk, compared with their checksums on the way."""

import fcntl
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from callbacks import commit
from callbacks.fetch import copies_folder, fetch, fetch_latest
from data_pipelines.storage import StorageError, StoragePath
from tests.unit.callbacks.committed_files import publish_files


@pytest.fixture
def store(s3_bucket: str, tmp_path: Path) -> str:
    """Return a store with the checkpoints of steps 10 and 20."""
    bucket, _, options = s3_bucket.partition("?")
    location = f"s3://{bucket}/{tmp_path.name}?{options}"
    for step in (10, 20):
        publish(location, step)
    return location


def publish(location: str, step: int) -> None:
    files = {"ckpt.index": "index", "ckpt.data-00000-of-00001": f"weights {step}"}
    publish_files(location, files, step=step, epoch=step // 10)


def newest(store: str) -> commit.CommittedCheckpoint:
    checkpoint = commit.latest_committed(store, verify=False)
    assert checkpoint is not None
    return checkpoint


def copies(cache: Path) -> list[Path]:
    """Return what lies in a cache but for its locks."""
    return [path for path in cache.iterdir() if not path.name.startswith(".lock-")]


def test_a_fetched_checkpoint_is_a_local_one(store: str, tmp_path: Path) -> None:
    remote = newest(store)
    with pytest.raises(StorageError, match="copy it there first"):
        _ = remote.prefix
    local = fetch(remote, tmp_path / "cache")
    assert Path(f"{local.prefix}.data-00000-of-00001").read_text() == "weights 20"
    assert local.damage() is None
    assert (local.step, local.files) == (remote.step, remote.files)
    assert commit.read_committed(local.path) == local
    assert fetch(local, tmp_path / "other") is local


def test_a_second_rank_of_the_machine_does_not_download_again(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = newest(store)
    local = fetch(remote, tmp_path)

    def refuse(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(StoragePath, "open_stream", refuse)
    assert fetch(remote, tmp_path) == local


def test_another_checkpoint_takes_the_place_of_the_one_before(store: str, tmp_path: Path) -> None:
    older = commit.read_committed(commit.folder(store, 10))
    fetch(older, tmp_path)
    fetch(newest(store), tmp_path)
    assert [path.name.split("-")[2] for path in copies(tmp_path)] == ["00000020"]


def test_copies_of_other_trainings_go_when_nobody_has_taken_them_for_days(store: str, tmp_path: Path) -> None:
    others = [tmp_path / f"{12 * letter}-step-00000010-{12 * '0'}" for letter in "ab"]
    kept = tmp_path / "notes"
    for folder in (*others, kept):
        folder.mkdir()
    for folder in (others[0], kept):
        os.utime(folder, (0, 0))
    local = fetch(newest(store), tmp_path)
    assert sorted(copies(tmp_path)) == sorted([others[1], kept, local.path])
    os.utime(local.path, (0, 0))
    fetch(newest(store), tmp_path)
    assert time.time() - Path(local.path).stat().st_mtime < 60


@pytest.mark.parametrize("damage", ["other content", "missing"])
def test_damage_is_noticed_on_the_way_and_the_one_before_is_taken(store: str, tmp_path: Path, damage: str) -> None:
    remote = newest(store)
    data = StoragePath.of(remote.path / next(file.name for file in remote.files if "data" in file.name))
    if damage == "missing":
        data.delete()
    else:
        data.write_bytes(b"Weights 20")
    with pytest.raises(commit.CheckpointDamagedError, match=r"is missing|has another checksum"):
        fetch(remote, tmp_path)
    assert copies(tmp_path) == []
    latest = fetch_latest(store, tmp_path)
    assert latest is not None
    assert latest.step == 10


def test_an_empty_store_has_nothing_to_fetch(s3_bucket: str, tmp_path: Path) -> None:
    bucket, _, options = s3_bucket.partition("?")
    assert fetch_latest(f"s3://{bucket}/never-used?{options}", tmp_path) is None
    assert fetch_latest(tmp_path / "absent", tmp_path) is None


def test_a_copy_that_was_changed_is_fetched_again(store: str, tmp_path: Path) -> None:
    remote = newest(store)
    data = Path(f"{fetch(remote, tmp_path).prefix}.data-00000-of-00001")
    data.write_text("Weights 20")  # as long as before
    again = fetch(remote, tmp_path)
    assert Path(f"{again.prefix}.data-00000-of-00001") == data
    assert data.read_text() == "weights 20"


def test_what_a_killed_process_had_begun_to_fetch_is_removed(store: str, tmp_path: Path) -> None:
    fetch(newest(store), tmp_path)
    (copy,) = copies(tmp_path)
    dead = tmp_path / f".arriving-{copy.name.split('-')[0]}-dead"
    copy.rename(dead)
    of_another_store = tmp_path / ".arriving-0123456789ab-alive"
    of_another_store.mkdir()
    fetch(newest(store), tmp_path)
    assert not dead.exists()
    assert of_another_store.exists()


def test_it_is_told_how_much_has_come(store: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    fetch(newest(store), tmp_path, lambda done, total: told.append((done, total)))
    # "weights 20" and "index".
    assert told == [(10, 15), (15, 15)]


def test_of_the_processes_of_a_machine_one_fetches_and_the_others_hear_how_far_it_is(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callbacks.fetch._LOOK_SECONDS", 0.001)
    remote = newest(store)
    fetch(remote, tmp_path)
    (copy,) = copies(tmp_path)
    origin = copy.name.split("-")[0]
    arriving = tmp_path / f".arriving-{origin}-other"
    copy.rename(arriving)
    heard, ended = threading.Event(), threading.Event()

    def wait() -> None:
        fetch(remote, tmp_path, lambda done, total: heard.set())
        ended.set()

    with (tmp_path / f".lock-{origin}").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=wait)
        thread.start()
        assert heard.wait(60)
        assert not ended.is_set()
        with monkeypatch.context() as refusing:
            refusing.setattr("callbacks.fetch.download", None)
            arriving.rename(copy)
            fcntl.flock(lock, fcntl.LOCK_UN)
            thread.join(60)
    assert ended.is_set()
    assert copies(tmp_path) == [copy]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the system's folder for temporary files, as everybody sees it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_copies_lie_in_a_folder_that_nobody_else_may_use(temporary: Path) -> None:
    folder = copies_folder()
    assert folder == copies_folder() == temporary / f"checkpoint-copies-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["open to others", "link", "another owner"])
def test_a_folder_that_others_could_fill_is_refused(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    user = os.getuid()
    folder = temporary / f"checkpoint-copies-{user}"
    if planted == "link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(temporary / "elsewhere")
    else:
        folder.mkdir(mode=0o700)
        folder.chmod(0o755 if planted == "open to others" else 0o700)
    if planted == "another owner":
        folder.rename(temporary / f"checkpoint-copies-{user + 1}")
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(PermissionError, match="this user alone may use; remove it"):
        copies_folder()

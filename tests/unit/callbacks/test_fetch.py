"""Checkpoints from an object store on the local disk, compared with their checksums on the way."""

import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.fetching import _IN_USE, copies_folder, fetch, fetch_latest
from mirrorspark.storage.host_cache import HostCache
from mirrorspark.storage.paths import StorageError, StoragePath
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
    """Return the copies in a cache, begun ones too."""
    return [entry.path for entry in HostCache(cache).entries()]


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


def test_copies_that_no_process_uses_go_when_another_arrives(store: str, tmp_path: Path) -> None:
    bucket, _, options = store.partition("?")
    stores = [f"{bucket}/{name}?{options}" for name in "ab"]
    for one in stores:
        publish(one, 10)
    fetched = [fetch(newest(one), tmp_path) for one in stores]
    assert sorted(copies(tmp_path)) == sorted(one.path for one in fetched), "this process uses both"
    _IN_USE.clear()  # as if it had ended
    third = fetch(newest(store), tmp_path)
    assert copies(tmp_path) == [third.path]


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
    data.write_text("Weights 20")  # as before
    again = fetch(remote, tmp_path)
    assert Path(f"{again.prefix}.data-00000-of-00001") == data
    assert data.read_text() == "weights 20"


def test_it_is_told_how_much_has_come(store: str, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    fetch(newest(store), tmp_path, lambda done, total: reported.append((done, total)))
    # "weights 20" and "index".
    assert reported == [(10, 15), (15, 15)]


def test_one_process_of_a_machine_downloads_and_the_others_follow_its_progress(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorspark.storage.host_cache._LOOK_SECONDS", 0.001)
    remote = newest(store)
    fetch(remote, tmp_path / "other")
    (copy,) = copies(tmp_path / "other")
    cache = HostCache(tmp_path / "cache")
    heard = threading.Event()

    with ThreadPoolExecutor(1) as threads:
        with cache.filling(copy.name, "checkpoint") as arriving:
            shutil.copytree(copy, arriving, dirs_exist_ok=True)
            waiting = threads.submit(fetch, remote, cache.folder, lambda done, total: heard.set())
            assert heard.wait(60)
            assert not waiting.done()
            monkeypatch.setattr("mirrorspark.callbacks.checkpoints.fetching.download", None)
            cache.publish(copy.name, arriving)
        assert waiting.result().path == cache.path(copy.name)
    assert copies(cache.folder) == [cache.path(copy.name)]


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

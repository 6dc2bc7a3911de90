"""Checkpoints from an object store on the local disk, compared with their checksums on the way."""

from pathlib import Path
from typing import Any

import pytest

from callbacks import commit
from callbacks.fetch import fetch, fetch_latest
from data_pipelines.storage import StorageError, StoragePath


@pytest.fixture
def store(s3_bucket: str, tmp_path: Path) -> str:
    """Return a store with the checkpoints of steps 10 and 20."""
    bucket, _, options = s3_bucket.partition("?")
    location = f"s3://{bucket}/{tmp_path.name}?{options}"
    for step in (10, 20):
        publish(location, step)
    return location


def publish(location: str, step: int) -> None:
    staging = commit.new_staging(location)
    (staging / "ckpt.index").write_text("index")
    (staging / "ckpt.data-00000-of-00001").write_text(f"weights {step}")
    commit.publish(staging, location, step=step, epoch=step // 10)


def newest(store: str) -> commit.CommittedCheckpoint:
    checkpoint = commit.latest_committed(store, verify=False)
    assert checkpoint is not None
    return checkpoint


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
    assert [path.name.split("-")[2] for path in tmp_path.iterdir()] == ["00000020"]


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
    assert list(tmp_path.iterdir()) == []
    latest = fetch_latest(store, tmp_path)
    assert latest is not None
    assert latest.step == 10


def test_an_empty_store_has_nothing_to_fetch(s3_bucket: str, tmp_path: Path) -> None:
    bucket, _, options = s3_bucket.partition("?")
    assert fetch_latest(f"s3://{bucket}/never-used?{options}", tmp_path) is None
    assert fetch_latest(tmp_path / "absent", tmp_path) is None

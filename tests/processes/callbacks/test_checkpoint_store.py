"""T5: the commit protocol, on a file system and on a store without rename, at every crash."""

import ctypes
import errno
import mmap
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import commit, retention
from mirrorspark.callbacks.checkpoints.checkpoint_store import (
    CheckpointStoreError,
    Delivery,
    LocalStore,
    Location,
    flush,
    native,
)
from mirrorspark.storage.paths import StoragePath
from tests.unit.callbacks.committed_files import publish_files


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Return an empty store of each kind."""
    if request.param == "local":
        return tmp_path / "store"
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    bucket, _, options = request.getfixturevalue("s3_bucket").partition("?")
    return f"s3://{bucket}/{tmp_path.name}?{options}"


def publish(directory: Location, step: int, *, content: str = "weights", auc: float | None = None) -> None:
    files = {
        "ckpt.index": "index",
        "ckpt.data-00000-of-00001": f"{content} {step}",
        commit.STATE: '{"stopping": {"wait": 1}}',
    }
    metrics = {} if auc is None else {"auc": auc}
    publish_files(directory, files, step=step, epoch=step // 10, metrics=metrics)


def names(directory: Location) -> set[str]:
    """Return the first two parts of every file's path."""
    root = StoragePath.of(directory)
    return {"/".join(file.path.relative_to(root).split("/")[:2]) for file in root.files()}


def test_a_checkpoint_is_read_back_with_states_and_metrics(store: Location) -> None:
    assert commit.committed(store) == []
    publish(store, 10, auc=0.5)
    (checkpoint,) = commit.committed(store)
    assert (checkpoint.step, checkpoint.epoch, checkpoint.metrics) == (10, 1, {"auc": 0.5})
    assert checkpoint.states() == {"stopping": {"wait": 1}}
    assert checkpoint.path == commit.folder(store, 10)
    assert checkpoint.damage() is None
    assert commit.read_committed(checkpoint.path) == checkpoint


def test_newest_best_and_pruned_are_the_same_on_every_store(store: Location) -> None:
    for step, auc in ((10, 0.5), (20, 0.9), (30, 0.6), (40, 0.7)):
        publish(store, step, auc=auc)
    best, newest = commit.best_committed(store, "auc", "max"), commit.latest_committed(store)
    assert best is not None
    assert newest is not None
    assert (best.step, newest.step) == (20, 40)
    removed = retention.prune(store, keep_last=1, keep_best=1, monitor="auc")
    assert set(removed) == {commit.folder(store, 10), commit.folder(store, 30)}
    assert [c.step for c in commit.committed(store)] == [40, 20]
    assert {name.partition("/")[0] for name in names(store)} - {""} == {"step-00000020", "step-00000040"}


def test_a_damaged_checkpoint_is_passed_over_and_replaced_by_the_same_step(store: Location) -> None:
    publish(store, 10)
    publish(store, 20, content="first")
    damaged = commit.read_committed(commit.folder(store, 20))
    data = next(file.name for file in damaged.files if "data" in file.name)
    (damaged.path / data).write_bytes(b"First 20")
    latest = commit.latest_committed(store)
    assert latest is not None
    assert latest.step == 10
    publish(store, 20, content="second")
    again = commit.latest_committed(store)
    assert again is not None
    assert (again.step, again.content("ckpt.data-00000-of-00001")) == (20, b"second 20")
    assert len(again.files) == len([n for n in StoragePath.of(again.path).files() if n.path.name != commit.MARKER])


def test_a_file_that_is_missing_is_damage(store: Location) -> None:
    publish(store, 10)
    checkpoint = commit.read_committed(commit.folder(store, 10))
    StoragePath.of(checkpoint.path / checkpoint.files[0].name).delete()
    assert "is missing" in str(checkpoint.damage())


class KilledError(BaseException):
    """Ends a program as a kill would: nothing of it runs any more."""


@contextmanager
def killed_after(writes: int) -> Iterator[None]:
    """Let this many changes of any store happen, and none after."""
    done = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            # The heartbeat of a write elsewhere in this process.
            if threading.current_thread().name == "mirrorspark-lease":
                return function(*arguments, **options)
            if done >= writes:
                raise KilledError
            done += 1
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, method in (
            (os, "link"),
            (shutil, "rmtree"),
            (Path, "mkdir"),
            (Path, "replace"),
            (Path, "write_bytes"),
            (StoragePath, "open_write"),
            (StoragePath, "delete"),
        ):
            patch.setattr(owner, method, counted(getattr(owner, method)))
        yield


@pytest.mark.parametrize("store", ["local", "memory"], indirect=True)
@pytest.mark.parametrize("is_replaced", [False, True])
def test_at_a_crash_between_any_two_writes_the_old_checkpoint_or_the_new_one_counts(
    store: Location, is_replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5: whole at any crash; a damaged checkpoint of the same step may be there, a good one always is."""
    # A process that is killed does not clean up the files that it has prepared.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: set[int] = set()
    for writes in range(100):
        StoragePath.of(store).delete()
        publish(store, 10)
        if is_replaced:
            publish(store, 20, content="former")
            damaged = commit.read_committed(commit.folder(store, 20))
            (damaged.path / damaged.files[0].name).write_bytes(b"?")
        try:
            with killed_after(writes):
                publish(store, 20)
                retention.prune(store, keep_last=1)
        except KilledError:
            is_over = False
        else:
            is_over = True
        latest = commit.latest_committed(store)
        assert latest is not None
        assert latest.damage() is None
        assert latest.content("ckpt.data-00000-of-00001") == f"weights {latest.step}".encode()
        seen.add(latest.step)

        retention.clean_staging(store)
        after = commit.latest_committed(store)
        assert after == latest
        assert {name.partition("/")[0] for name in names(store) if name} <= {"step-00000010", "step-00000020"}
        if is_over:
            break
    else:
        pytest.fail("the program never came to its end")
    assert seen == {10, 20}


def test_leftovers_of_a_crash_go_and_checkpoints_stay(store: Location) -> None:
    publish(store, 10)
    root = StoragePath.of(store)
    left_over = "step-00000020/abc" if "://" in str(store) else ".staging-abc"
    (root / left_over / "ckpt.index").parent.make_folder()
    (root / left_over / "ckpt.index").write_bytes(b"half")
    (root / "notes" / "mine").parent.make_folder()
    (root / "notes" / "mine").write_bytes(b"kept")
    assert retention.clean_staging(store) == [native(root / left_over)]
    assert [c.step for c in commit.committed(store)] == [10]
    assert (root / "notes" / "mine").exists()
    assert not (root / left_over).exists()


@pytest.mark.parametrize("method", ["open_write", "write_bytes"])
def test_a_remote_store_that_fails_half_way_is_named_and_nothing_counts(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    bucket, _, options = s3_bucket.partition("?")
    store = f"s3://{bucket}/{tmp_path.name}?{options}"
    publish(store, 10)
    original = getattr(StoragePath, method)

    def fail(path: StoragePath, *arguments: Any) -> Any:
        if path.name in ("ckpt.index", commit.MARKER):
            raise OSError("AWS Error SLOW_DOWN")
        return original(path, *arguments)

    with monkeypatch.context() as failing:
        failing.setattr(StoragePath, method, fail)
        with pytest.raises(CheckpointStoreError, match=r"cannot write a checkpoint to s3://.*SLOW_DOWN"):
            publish(store, 20)
    assert [c.step for c in commit.committed(store)] == [10]
    assert not StoragePath.of(commit.folder(store, 20)).exists()
    publish(store, 20)
    assert [c.step for c in commit.committed(store)] == [20, 10]


def test_a_store_on_another_disk_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(*arguments: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    publish(tmp_path / "store", 10)
    (checkpoint,) = commit.committed(tmp_path / "store")
    assert checkpoint.damage() is None


def test_a_local_store_that_vanishes_between_two_files_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5: half a checkpoint with a marker would count."""
    source, folder = tmp_path / "source", tmp_path / "store"
    for path in (source / "ckpt.data", source / "more" / "ckpt.index"):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x")
    store = LocalStore(StoragePath.of(folder))
    store.make()

    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    def flush_and_take_away(path: Path, beat: Callable[[], None]) -> None:
        flush(path, beat)
        shutil.rmtree(folder)

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr("mirrorspark.callbacks.checkpoints.checkpoint_store.flush", flush_and_take_away)
    delivery = Delivery("step-00000001", source, ["ckpt.data", "more/ckpt.index"], "marker.json", lambda inner: b"{}")
    with pytest.raises(FileNotFoundError, match="the folder that it belongs in was removed"):
        store.deliver(delivery)
    assert not folder.exists()


def test_a_local_store_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "ckpt.index").write_text("index")
    with pytest.raises(CheckpointStoreError, match="No such file"):
        commit.publish(staging, tmp_path / "gone", step=1, epoch=0)
    assert not (tmp_path / "gone").exists()
    # To be tried again.
    assert (staging / "ckpt.index").exists()


@pytest.mark.parametrize(("content", "beats"), [(b"", 1), (b"x" * (2 * mmap.PAGESIZE + 1), 4)])
def test_a_file_is_made_durable_in_parts_that_show_the_disk_gets_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, beats: int
) -> None:
    monkeypatch.setattr("mirrorspark.callbacks.checkpoints.checkpoint_store._FLUSH_BYTES", mmap.PAGESIZE)
    (tmp_path / "file").write_bytes(content)
    heard: list[int] = []
    flush(tmp_path / "file", lambda: heard.append(1))
    # Two whole parts, the rest of one byte, and the file as such.
    assert len(heard) == beats
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize(("number", "is_raised"), [(errno.EIO, True), (errno.ESPIPE, False)])
def test_a_part_that_the_disk_refuses_is_an_error_unless_it_only_takes_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_raised: bool
) -> None:
    def refuse(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(sync_file_range=refuse))
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="file") if is_raised else nullcontext():
        flush(tmp_path / "file")

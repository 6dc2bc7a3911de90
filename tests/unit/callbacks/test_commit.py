"""T5, T6: committed checkpoints are recognised at any crash and after any damage."""

import errno
import hashlib
import json
import logging
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorspark.callbacks.checkpoints import checksums, commit, retention
from mirrorspark.callbacks.checkpoints.checkpoint_store import CheckpointStoreError
from mirrorspark.callbacks.checkpoints.fencing import Permit
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.storage.writes import without_renames


def publish(directory: Path, step: int, *, content: str = "weights", auc: float | None = None) -> Path:
    files = {"ckpt.index": "index", "ckpt.data-00000-of-00001": f"{content} {step}"}
    metrics = {} if auc is None else {"val_auc": auc}
    path = publish_files(directory, files, step=step, epoch=step // 10, metrics=metrics).path
    assert isinstance(path, Path)
    return path


def damage(path: Path) -> None:
    (path / "ckpt.index").write_text("inDex")  # as before


def test_a_published_checkpoint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    staging, store = tmp_path / "prepared", tmp_path / "store"
    for folder in (staging, store):
        folder.mkdir()
    (staging / "ckpt.index").write_bytes(b"123456789")
    metrics = {"val_auc": 0.75, "loss": math.nan, "gain": -math.inf}
    written = commit.publish(staging, store, step=420, epoch=4, step_in_epoch=20, metrics=metrics)

    read = commit.read_committed(store / "step-00000420")

    assert (read.step, read.epoch, read.step_in_epoch, read.format_version) == (420, 4, 20, 2)
    assert read.metrics["val_auc"] == 0.75
    assert math.isnan(read.metrics["loss"])
    assert read.metrics["gain"] == -math.inf
    # The check value of CRC-32 (Williams, "A painless guide to CRC error detection algorithms", appendix).
    assert read.files == written.files == (commit.CheckpointFile("ckpt.index", 9, "crc32:cbf43926"),)
    assert read.prefix == str(store / "step-00000420" / "ckpt")
    assert not staging.exists()


@pytest.mark.parametrize("is_local", [True, False])
def test_checksums_are_known_before_the_last_look_at_the_fence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_local: bool
) -> None:
    """A chief that computed them after it would commit long after another attempt has taken over."""
    order: list[str] = []

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def checksum_of(path: Path, *, beat: Callable[[], None]) -> str:
        order.append("checksum")
        return "crc32:0"

    monkeypatch.setattr(checksums, "checksum_of", checksum_of)
    monkeypatch.setattr(Permit, "check", lambda permit: order.append("fence"))
    monkeypatch.setattr(threading.Thread, "start", no_thread)  # So they are computed when they are asked for.
    store = tmp_path if is_local else f"memory://{tmp_path.name}"
    publish_files(
        store, {"ckpt.index": "index", "ckpt.data": "weights"}, step=10, epoch=1, permit=Permit(store, 1, None)
    )
    assert order == ["checksum", "checksum", "fence", "fence"]


def test_without_renames_the_marker_commits_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T8: on a volume of Databricks, as on an object store."""
    without_renames(monkeypatch)
    for step in (10, 20):
        publish(tmp_path, step)
    latest = commit.latest_committed(tmp_path)
    assert latest is not None
    assert latest.step == 20
    Path(f"{latest.prefix}.index").write_text("inDex")
    again = commit.latest_committed(tmp_path)
    assert again is not None
    assert again.step == 10
    (tmp_path / "step-00000020" / commit.MARKER).unlink()
    assert [one.step for one in commit.committed(tmp_path)] == [10]


def test_the_marker_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    path = publish(tmp_path, 10, auc=math.nan)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    marker = json.loads((path / commit.MARKER).read_text(), parse_constant=refuse)
    assert marker["metrics"] == {"val_auc": "nan"}


def test_a_crash_before_the_rename_leaves_nothing_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, 10)
    assert commit.committed(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_marker_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(tmp_path, 10)
    path = publish(tmp_path, 20)
    (path / commit.MARKER).unlink()
    assert [c.step for c in commit.committed(tmp_path)] == [10]
    assert "it has no COMMITTED.json" in caplog.text


def test_committing_the_same_step_again_keeps_the_first(tmp_path: Path) -> None:
    path = publish(tmp_path, 10, content="first")
    assert publish(tmp_path, 10, content="second") == path
    assert (path / "ckpt.data-00000-of-00001").read_text() == "first 10"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


def test_committing_a_step_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    damage(publish(tmp_path, 10, content="first"))
    path = publish(tmp_path, 10, content="second")
    assert (path / "ckpt.data-00000-of-00001").read_text() == "second 10"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


def test_checkpoints_are_listed_newest_first_by_number(tmp_path: Path) -> None:
    for step in (90, 100_000_000, 100):
        publish(tmp_path, step)
    assert [c.step for c in commit.committed(tmp_path)] == [100_000_000, 100, 90]
    assert commit.committed(tmp_path / "absent") == []


def test_the_latest_is_the_one_before_when_checksums_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(tmp_path, 10)
    damage(publish(tmp_path, 20))
    latest = commit.latest_committed(tmp_path)
    assert latest is not None
    assert latest.step == 10
    assert "step-00000020 is damaged: ckpt.index has another checksum" in caplog.text
    unverified = commit.latest_committed(tmp_path, verify=False)
    assert unverified is not None
    assert unverified.step == 20


def test_damage_names_the_file_that_is_short_or_missing(tmp_path: Path) -> None:
    checkpoint = commit.read_committed(publish(tmp_path, 10))
    assert checkpoint.damage() is None
    (checkpoint.path / "ckpt.index").write_text("ind")
    assert checkpoint.damage() == "ckpt.index has 3 bytes instead of 5"
    (checkpoint.path / "ckpt.data-00000-of-00001").unlink()
    assert checkpoint.damage() == "ckpt.data-00000-of-00001 is missing"


def test_the_best_is_the_earliest_of_equals_and_nan_takes_no_part(tmp_path: Path) -> None:
    for step, auc in ((10, 0.5), (20, 0.7), (30, 0.7), (40, math.nan), (50, None)):
        publish(tmp_path, step, auc=auc)
    best, worst = (commit.best_committed(tmp_path, "val_auc", mode) for mode in ("max", "min"))
    assert best is not None
    assert worst is not None
    assert (best.step, worst.step) == (20, 10)


def test_the_best_without_such_a_metric_lists_those_there_are(tmp_path: Path) -> None:
    assert commit.best_committed(tmp_path, "val_auc", "max") is None
    publish(tmp_path, 10, auc=0.5)
    with pytest.raises(ValueError, match=r"'val_acc'; available: \['val_auc'\]"):
        commit.best_committed(tmp_path, "val_acc", "max")


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, auc in ((10, 0.5), (20, 0.9), (30, 0.6), (40, 0.7)):
        publish(tmp_path, step, auc=auc)
    removed = retention.prune(tmp_path, keep_last=1, keep_best=1, monitor="val_auc")
    assert sorted(path.name for path in removed) == ["step-00000010", "step-00000030"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000040"]


def test_prune_never_removes_the_newest_whole_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    publish(tmp_path, 10)
    publish(tmp_path, 20)
    damage(publish(tmp_path, 30))
    retention.prune(tmp_path, keep_last=1)
    assert [c.step for c in commit.committed(tmp_path)] == [30, 20]


def test_nothing_is_pruned_when_no_checkpoint_is_whole(tmp_path: Path) -> None:
    for step in (10, 20):
        damage(publish(tmp_path, step))
    assert retention.prune(tmp_path, keep_last=1) == []


def test_a_marker_of_a_later_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = publish(tmp_path, 10)
    marker = json.loads((path / commit.MARKER).read_text())
    (path / commit.MARKER).write_text(json.dumps(marker | {"format_version": 3}))
    with pytest.raises(commit.CheckpointDamagedError, match="format version is 3, this program reads up to 2"):
        commit.read_committed(path)


def test_a_marker_of_the_first_format_is_read_and_its_checksums_compared(tmp_path: Path) -> None:
    path = publish(tmp_path, 10)
    marker = json.loads((path / commit.MARKER).read_text()) | {"format_version": 1}
    for file in marker["files"]:
        del file["checksum"]
        file["sha256"] = hashlib.sha256((path / file["name"]).read_bytes()).hexdigest()
    (path / commit.MARKER).write_text(json.dumps(marker))
    assert commit.read_committed(path).damage() is None
    # As a copy of it on another disk is written.
    (path / commit.MARKER).write_text(commit.marker_text(commit.read_committed(path)))
    assert commit.read_committed(path).damage() is None
    damage(path)
    assert commit.read_committed(path).damage() == "ckpt.index has another checksum than when it was written"


def test_a_checksum_of_an_unknown_kind_is_damage(tmp_path: Path) -> None:
    path = publish(tmp_path, 10)
    text = (path / commit.MARKER).read_text()
    (path / commit.MARKER).write_text(text.replace("crc32:", "crc64:"))
    with pytest.raises(commit.CheckpointDamagedError, match="none of the kinds crc32, sha256"):
        commit.read_committed(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}', '{"format_version": 2, "step": 1e999}'])
def test_an_unreadable_marker_is_damage(tmp_path: Path, text: str) -> None:
    path = publish(tmp_path, 10)
    (path / commit.MARKER).write_text(text)
    with pytest.raises(commit.CheckpointDamagedError, match=r"COMMITTED.json cannot be read"):
        commit.read_committed(path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_marker_that_names_files_outside_its_folder_is_damage(tmp_path: Path, name: str) -> None:
    path = publish(tmp_path, 10)
    marker = json.loads((path / commit.MARKER).read_text())
    marker["files"][0]["name"] = name
    (path / commit.MARKER).write_text(json.dumps(marker))
    with pytest.raises(commit.CheckpointDamagedError, match="leaves the folder"):
        commit.read_committed(path)


def test_the_damage_error_survives_pickle(tmp_path: Path) -> None:
    error = commit.CheckpointDamagedError(tmp_path, "gone")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again)) == (type(error), str(error))


def test_an_unwritable_store_is_named_in_an_error_with_the_systems_number(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointStoreError, match=r"cannot write a checkpoint to .*file/store \(Not a dir") as caught:
        commit.publish(prepared, tmp_path / "file" / "store", step=10, epoch=1)
    assert caught.value.errno == errno.ENOTDIR
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (type(again), str(again), again.errno) == (type(caught.value), str(caught.value), errno.ENOTDIR)


@pytest.mark.process
def test_the_driver_reads_checkpoints_without_tensorflow() -> None:
    program = (
        "import sys, mirrorspark.callbacks.checkpoints.commit, mirrorspark.callbacks.mlflow.metric_buffer; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_a_store_that_cannot_be_read_is_an_error_and_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older checkpoint is not taken for it, and nothing is replaced or pruned."""
    publish(tmp_path, 10)
    path = publish(tmp_path, 20)

    def fail(*arguments: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(commit, "checksum_of", fail)
    for look in (commit.read_committed(path).damage, lambda: commit.latest_committed(tmp_path)):
        with pytest.raises(OSError, match="Input/output error"):
            look()
    with pytest.raises(OSError, match="Input/output error"):
        retention.prune(tmp_path, keep_last=1)
    with pytest.raises(CheckpointStoreError, match="Input/output error"):
        publish(tmp_path, 20, content="other")
    assert [c.step for c in commit.committed(tmp_path)] == [20, 10]
    assert (path / "ckpt.data-00000-of-00001").read_text() == "weights 20"


def test_reading_for_checksums_shows_that_it_gets_on(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        publish(tmp_path, step)
    beats: list[int] = []
    retention.prune(tmp_path, keep_last=1, beat=lambda: beats.append(1))
    # The two files of the newest one are read, two checkpoints are removed.
    assert len(beats) == 4

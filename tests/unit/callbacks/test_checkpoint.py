"""T5: checkpoints from a fit in one process (two processes: tests/cluster/test_callbacks_two_workers.py)."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from callbacks import commit
from callbacks.checkpoint import ChiefCheckpoint

NewModel = Callable[..., tf_keras.Model]
NewDataset = Callable[..., tf.data.Dataset]


def fit(model: tf_keras.Model, dataset: tf.data.Dataset, callbacks: list[Any], **arguments: Any) -> None:
    model.fit(dataset, callbacks=callbacks, verbose=0, **arguments)


class Counter:
    """A stateful callback whose state covers ``lag`` epochs fewer than were completed."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self.epochs}

    def set_state(self, state: dict[str, Any]) -> None:
        self.epochs = state["epoch"]


def test_each_epoch_ends_with_a_checkpoint_and_only_the_kept_ones_stay(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    checkpoint = ChiefCheckpoint(tmp_path / "store", keep_last=2, keep_best=0, monitor="loss", mode="min")
    fit(new_model(), new_dataset(), [checkpoint], epochs=3)
    newest, before = commit.committed(tmp_path / "store")
    # Four steps per epoch.
    assert (newest.step, newest.epoch, newest.step_in_epoch) == (12, 3, 0)
    assert (before.step, before.epoch) == (8, 2)
    assert set(newest.metrics) == {"loss", "mae"}
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["step-00000008", "step-00000012"]


def test_checkpoints_within_an_epoch_name_the_data_position(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    checkpoint = ChiefCheckpoint(tmp_path, keep_last=9, monitor=None, every_steps=3)
    fit(new_model(), new_dataset(), [checkpoint], epochs=2)
    positions = [(c.step, c.epoch, c.step_in_epoch) for c in reversed(commit.committed(tmp_path))]
    # Steps 3 and 6 are due; 4 and 8 end epochs.
    assert positions == [(3, 0, 3), (4, 1, 0), (6, 1, 2), (8, 2, 0)]


def test_steps_that_run_in_one_call_are_saved_when_the_mark_is_passed(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    model = new_model()
    model.compile("sgd", "mse", steps_per_execution=2)
    fit(model, new_dataset(), [ChiefCheckpoint(tmp_path, keep_last=9, monitor=None, every_steps=1)], epochs=1)
    assert [c.step for c in commit.committed(tmp_path)] == [4, 2]


def test_the_saved_weights_are_those_of_the_moment(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    model = new_model()
    fit(model, new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None)], epochs=1)
    (checkpoint,) = commit.committed(tmp_path)
    other = new_model(seed=2)
    tf.train.Checkpoint(model=other).read(checkpoint.prefix).expect_partial()
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_monitor_that_is_not_logged_is_an_error_that_lists_the_logs(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    with pytest.raises(ValueError, match=r"'val_auc' is not among the logs \['loss', 'mae'\]"):
        fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path)], epochs=1)


def test_checkpoints_of_a_training_further_along_are_not_mixed_with_a_new_one(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None)], epochs=1)
    with pytest.raises(ValueError, match="holds the checkpoint of step 4 and this training starts at step 0"):
        fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None)], epochs=1)
    assert [c.step for c in commit.committed(tmp_path)] == [4]


def test_a_state_that_lags_behind_the_epoch_is_refused(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    checkpoint = ChiefCheckpoint(tmp_path, monitor=None, stateful={"counter": Counter(epochs=0)})
    with pytest.raises(ValueError, match="list 'counter' before ChiefCheckpoint"):
        fit(new_model(), new_dataset(), [checkpoint], epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_store_ends_training_at_its_begin_and_is_named(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write a checkpoint to .*file/store"):
        fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path / "file" / "store", monitor=None)], epochs=1)


@contextmanager
def small_files(limit_bytes: int) -> Iterator[None]:
    """Limit the bytes of a file, as a full disk would; SIGXFSZ is ignored by Python.

    Not a fixture: pytest reports a test before it tears fixtures down, and its own output may be a file, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit_bytes", [16, 2000])
def test_a_full_store_is_named_and_leaves_nothing_half_written(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, limit_bytes: int
) -> None:
    model, dataset = new_model(), new_dataset()
    with small_files(limit_bytes), pytest.raises(OSError, match=f"cannot write a checkpoint to {tmp_path}"):
        fit(model, dataset, [ChiefCheckpoint(tmp_path, monitor=None)], epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def as_rank_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process rank 1 of two, as far as callbacks can tell."""
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))


@pytest.mark.usefixtures("as_rank_1")
def test_a_rank_that_is_not_the_chief_leaves_no_file_even_after_an_error(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    store, scratch = tmp_path / "store", tmp_path / "scratch"
    checkpoint = ChiefCheckpoint(store, monitor=None, scratch_dir=scratch)
    fit(new_model(), new_dataset(), [checkpoint], epochs=1)
    assert list(scratch.iterdir()) == []
    with small_files(16), pytest.raises(OSError, match=f"cannot write a checkpoint to {scratch}"):
        fit(new_model(), new_dataset(), [checkpoint], epochs=1)
    assert list(scratch.iterdir()) == []
    assert not store.exists()


@pytest.mark.usefixtures("as_rank_1")
def test_what_a_killed_rank_left_is_removed_by_its_next_attempt(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None, scratch_dir=scratch)], epochs=1)
    assert len(list(scratch.iterdir())) == 1
    fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None, scratch_dir=scratch)], epochs=1)
    assert list(scratch.iterdir()) == []


def test_unknown_steps_per_epoch_and_every_steps_do_not_go_together(tmp_path: Path, new_model: NewModel) -> None:
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(()), output_signature=(tf.TensorSpec((8, 3)), tf.TensorSpec((8, 1)))
    )
    with pytest.raises(ValueError, match="pass steps_per_epoch to fit"):
        fit(new_model(), dataset, [ChiefCheckpoint(tmp_path, monitor=None, every_steps=2)], epochs=1)


@pytest.mark.parametrize("arguments", [{"keep_last": 0}, {"mode": "best"}, {"every_steps": 0}])
def test_arguments_out_of_range_are_refused_when_built(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ChiefCheckpoint(tmp_path, **arguments)

"""T5: checkpoints from a fit in one process (two processes: tests/cluster/test_callbacks_two_workers.py)."""

import json
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.backup import BackupAndRestore, restore
from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.checkpoint_store import CheckpointStoreError
from mirrorspark.callbacks.checkpoints.fencing import Permit, StaleAttemptError, fence
from mirrorspark.callbacks.checkpoints.snapshot import Snapshot
from mirrorspark.callbacks.collectives.equal_weights import WeightsDifferError
from mirrorspark.callbacks.nan_guard import NonFiniteLossError

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


class Patient(tf_keras.callbacks.Callback):
    """Waits after every step until everything is published, so that no checkpoint takes another's place."""

    def __init__(self, checkpoint: ChiefCheckpoint) -> None:
        super().__init__()
        self._checkpoint = checkpoint

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._checkpoint.wait_until_published()


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
    fit(new_model(), new_dataset(), [checkpoint, Patient(checkpoint)], epochs=2)
    positions = [(c.step, c.epoch, c.step_in_epoch) for c in reversed(commit.committed(tmp_path))]
    # Steps 3 and 6 are due; 4 and 8 end epochs.
    assert positions == [(3, 0, 3), (4, 1, 0), (6, 1, 2), (8, 2, 0)]


def test_steps_that_run_in_one_call_are_saved_when_the_mark_is_passed(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    model = new_model()
    model.compile("sgd", "mse", steps_per_execution=2)
    checkpoint = ChiefCheckpoint(tmp_path, keep_last=9, monitor=None, every_steps=1)
    fit(model, new_dataset(), [checkpoint, Patient(checkpoint)], epochs=1)
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


@pytest.fixture
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no time for a second try in a budget that is ample for the first, however slow the machine is."""
    monkeypatch.setattr("mirrorspark.callbacks.checkpoints.publisher._FIRST_PAUSE_SECONDS", 100.0)


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


@pytest.mark.usefixtures("_one_try")
@pytest.mark.parametrize("limit_bytes", [16, 2000])
def test_a_full_local_disk_is_named_and_leaves_nothing_half_written(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, limit_bytes: int
) -> None:
    store, scratch = tmp_path / "store", tmp_path / "scratch"
    model, dataset = new_model(), new_dataset()
    checkpoint = ChiefCheckpoint(store, monitor=None, scratch_dir=scratch, retry_seconds=60)
    with small_files(limit_bytes), pytest.raises(CheckpointStoreError, match=f"cannot write a checkpoint to {scratch}"):
        fit(model, dataset, [checkpoint], epochs=1)
    assert list(store.iterdir()) == list(scratch.iterdir()) == []


@pytest.fixture
def as_rank_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process rank 1 of two, in the form that callbacks read."""
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))


@pytest.mark.usefixtures("as_rank_1")
def test_a_rank_that_is_not_the_chief_writes_no_file(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    store, scratch = tmp_path / "store", tmp_path / "scratch"
    checkpoint = ChiefCheckpoint(store, monitor=None, scratch_dir=scratch, every_steps=1)
    fit(new_model(), new_dataset(), [checkpoint], epochs=1)
    assert not store.exists()
    assert not scratch.exists()


def test_the_next_attempt_removes_the_files_of_a_killed_chief(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scratch = tmp_path / "store", tmp_path / "scratch"
    remove = shutil.rmtree

    def leave_scratch(path: str | Path, **options: Any) -> None:
        if not Path(path).is_relative_to(scratch):
            remove(path, **options)

    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", leave_scratch)
        fit(new_model(), new_dataset(), [ChiefCheckpoint(store, monitor=None, scratch_dir=scratch)], epochs=1)
    assert len(list(scratch.iterdir())) == 1
    (store / ".staging-killed").mkdir()
    callbacks = [BackupAndRestore(store), ChiefCheckpoint(store, monitor=None, scratch_dir=scratch)]
    fit(new_model(), new_dataset(), callbacks, epochs=2)
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in store.iterdir()) == ["step-00000004", "step-00000008"]


class AtStep(tf_keras.callbacks.Callback):
    """Does things after given steps of the training."""

    def __init__(self, actions: dict[int, Callable[[], Any]]) -> None:
        super().__init__()
        self._actions = actions
        self._step = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        self._actions.get(self._step, lambda: None)()


@contextmanager
def closed_store() -> Iterator[threading.Event]:
    """Hold back all publishing until the event is set."""
    opened = threading.Event()
    publish = commit.publish

    def publish_when_opened(*arguments: Any, **options: Any) -> commit.CommittedCheckpoint:
        assert opened.wait(60)
        return publish(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit, "publish", publish_when_opened)
        patch.setattr(Snapshot, "write", _when_set(opened, Snapshot.write))
        yield opened


def _when_set(event: threading.Event, function: Callable[..., Any]) -> Callable[..., Any]:
    def waiting(*arguments: Any) -> Any:
        assert event.wait(60)
        return function(*arguments)

    return waiting


@pytest.mark.parametrize("is_rich", [False, True])
def test_training_goes_on_while_values_are_written_that_stay_those_of_their_step(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, is_rich: bool
) -> None:
    model = new_model(is_rich=is_rich)
    seen: list[list[np.ndarray]] = []

    def look() -> None:
        seen.append([variable.numpy() for variable in [*model.variables, *model.optimizer.variables]])

    checkpoint = ChiefCheckpoint(tmp_path, monitor=None, keep_last=9, every_steps=2)
    with closed_store() as opened:
        # The snapshot is taken at step 2, written after step 7; steps 4 and 6 come meanwhile.
        actions = {2: look, 4: look, 7: lambda: (opened.set(), checkpoint.wait_until_published())}
        fit(model, new_dataset(), [AtStep(actions), checkpoint], epochs=2)

    assert [c.step for c in commit.committed(tmp_path)] == [8, 4, 2]
    for step, values in zip((2, 4), seen, strict=True):
        other = new_model(seed=2, is_rich=is_rich)
        restore(other, other.optimizer, commit.read_committed(commit.folder(tmp_path, step)))
        for ours, theirs in zip([*other.variables, *other.optimizer.variables], values, strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)


def test_epoch_end_checkpoints_stay_in_the_queue_for_a_slow_store(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    checkpoint = ChiefCheckpoint(tmp_path, monitor="loss", mode="min", keep_last=9, every_steps=1)
    with closed_store() as opened:
        actions = {10: lambda: (opened.set(), checkpoint.wait_until_published())}
        fit(new_model(), new_dataset(), [AtStep(actions), checkpoint], epochs=3)
    # 1 was on its way; 8 took the place of 4, for it has the smaller loss, too.
    assert {c.step for c in commit.committed(tmp_path)} >= {1, 8, 12}
    assert 4 not in {c.step for c in commit.committed(tmp_path)}


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between tries."""
    monkeypatch.setattr("mirrorspark.callbacks.checkpoints.publisher._FIRST_PAUSE_SECONDS", 0.01)


@pytest.mark.usefixtures("_impatient")
def test_a_store_that_vanishes_for_a_while_loses_nothing(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, caplog: pytest.LogCaptureFixture
) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    checkpoint = ChiefCheckpoint(store, monitor=None, keep_last=9)
    actions = {
        # Published before it vanishes.
        5: lambda: (checkpoint.wait_until_published(), store.rename(elsewhere)),
        11: lambda: (wait_for(lambda: "waits" in caplog.text), elsewhere.rename(store)),
    }
    fit(new_model(), new_dataset(), [AtStep(actions), checkpoint], epochs=3)
    assert [(c.step, c.damage()) for c in commit.committed(store)] == [(12, None), (8, None), (4, None)]
    assert f"The checkpoint of step 8 waits: {store} does not accept it (" in caplog.text
    assert "Publishing is retried automatically" in caplog.text
    assert caplog.text.count(f"{store} accepts checkpoints again: that of step 8 is published") == 1
    assert "start again" not in caplog.text


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("_one_try")
def test_a_store_that_stays_away_ends_training_and_the_last_good_one_is_named(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    checkpoint = ChiefCheckpoint(store, monitor=None, retry_seconds=60)
    vanish = AtStep({5: lambda: (checkpoint.wait_until_published(), store.rename(elsewhere))})
    with pytest.raises(CheckpointStoreError, match=r"the last good checkpoint is .*/store/step-00000004") as caught:
        fit(new_model(), new_dataset(), [vanish, checkpoint], epochs=10**6)
    assert caught.value.store == str(store)
    assert [(c.step, c.damage()) for c in commit.committed(elsewhere)] == [(4, None)]
    # Made anew, the folder of a disk that was unmounted would take the files that belong on the disk.
    assert not store.exists()


def test_a_chief_that_was_given_up_publishes_no_more(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    fence(tmp_path, 1)
    checkpoint = ChiefCheckpoint(tmp_path, monitor=None, attempt=1)
    give_up = AtStep({6: lambda: (checkpoint.wait_until_published(), fence(tmp_path, 2))})
    with pytest.raises(StaleAttemptError, match=r"attempt 1 may not publish .* attempt 2 has taken over"):
        fit(new_model(), new_dataset(), [give_up, checkpoint], epochs=3)
    assert [(c.step, c.attempt) for c in commit.committed(tmp_path)] == [(4, 1)]


def test_a_chief_that_comes_late_neither_cleans_nor_publishes(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    late, _ = fence(tmp_path, 1), fence(tmp_path, 1)
    (tmp_path / ".staging-of-the-new-chief").mkdir()
    with pytest.raises(StaleAttemptError):
        fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None, attempt=1, fence=late.id)], epochs=1)
    assert (tmp_path / ".staging-of-the-new-chief").is_dir()
    assert commit.committed(tmp_path) == []


def test_a_chief_that_wakes_up_late_leaves_the_local_files_of_the_next_one_on_its_machine(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: without them an incomplete checkpoint would be committed. The attempt after that removes them."""
    store, scratch = tmp_path / "store", tmp_path / "scratch"

    def train(number: int, fence: str, epochs: int) -> None:
        checkpoint = ChiefCheckpoint(store, monitor=None, attempt=number, fence=fence, scratch_dir=scratch)
        fit(new_model(), new_dataset(), [BackupAndRestore(store), checkpoint], epochs=epochs)

    late, later = fence(store, 1), fence(store, 2)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        train(2, later.id, 1)
    (left,) = scratch.iterdir()
    with monkeypatch.context() as paused:
        paused.setattr(Permit, "check", lambda permit: None)  # which it has done long ago
        train(1, late.id, 1)
    assert list(scratch.iterdir()) == [left]
    train(3, fence(store, 3).id, 1)
    assert list(scratch.iterdir()) == []


def test_a_loss_that_is_not_finite_is_named_before_weights_that_differ(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: two workers' NaN may have different bits, and no machine is faulty."""

    def differ(model: tf_keras.Model) -> None:
        raise WeightsDifferError("1 weights differ")

    def find_nan() -> None:
        raise NonFiniteLossError(1, 4, float("nan"))

    monkeypatch.setattr("mirrorspark.callbacks.checkpoint.check_equal_weights", differ)
    with pytest.raises(NonFiniteLossError, match="first in step 4"):
        fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None, before_save=find_nan)], epochs=1)
    assert commit.committed(tmp_path) == []


def test_a_disk_that_has_lost_the_fence_is_not_begun_anew(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    checkpoint = ChiefCheckpoint(tmp_path / "gone", monitor=None, attempt=1, fence="put up before")
    with pytest.raises(CheckpointStoreError, match="is the disk still there"):
        fit(new_model(), new_dataset(), [checkpoint], epochs=1)
    assert not (tmp_path / "gone").exists()


def test_a_good_checkpoint_outlives_a_start_at_which_it_cannot_be_read(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None)], epochs=1)

    def fail(*arguments: Any) -> str:
        raise OSError("AWS Error SLOW_DOWN")

    with monkeypatch.context() as failing:
        failing.setattr(commit, "checksum_of", fail)
        with pytest.raises(CheckpointStoreError, match="SLOW_DOWN"):
            fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None)], epochs=1)
    assert [(c.step, c.damage()) for c in commit.committed(tmp_path)] == [(4, None)]


def test_while_training_only_waits_its_owner_knows_and_hears_that_it_gets_on(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    events: list[str] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        events.append("begin")
        yield
        events.append("end")

    def beat() -> None:
        if events[-1] == "begin":
            events.append("beat")

    checkpoint = ChiefCheckpoint(tmp_path, monitor=None, on_wait=waiting, beat=beat)
    with closed_store() as opened:
        actions = {2: lambda: (threading.Timer(0.0, opened.set).start(), events.append("save"), checkpoint.save_now())}
        fit(new_model(), new_dataset(), [checkpoint, AtStep(actions)], epochs=1)
    # Asked to save, and at the end.
    assert [word for word in events if word != "beat"] == ["save", "begin", "end", "begin", "end"]
    assert events[2] == "beat"


def test_an_error_right_before_a_save_prevents_it(tmp_path: Path, new_model: NewModel, new_dataset: NewDataset) -> None:
    def refuse() -> None:
        raise ArithmeticError("not this one")

    with pytest.raises(ArithmeticError, match="not this one"):
        fit(new_model(), new_dataset(), [ChiefCheckpoint(tmp_path, monitor=None, before_save=refuse)], epochs=1)
    assert commit.committed(tmp_path) == []


def test_checkpoints_are_due_by_the_clock(tmp_path: Path, new_model: NewModel, new_dataset: NewDataset) -> None:
    checkpoint = ChiefCheckpoint(tmp_path, monitor=None, keep_last=9, every_seconds=1e-9)
    fit(new_model(), new_dataset(), [checkpoint, Patient(checkpoint)], epochs=2)
    # The pace is measured anew in every epoch; its last step is left to its end.
    assert [c.step for c in commit.committed(tmp_path)] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_remote_store_holds_what_a_local_one_would(
    s3_bucket: str, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    bucket, _, options = s3_bucket.partition("?")
    store = f"s3://{bucket}/fit?{options}"
    model = new_model()
    fit(model, new_dataset(), [ChiefCheckpoint(store, monitor=None, keep_last=1)], epochs=2)
    assert [(c.step, c.damage()) for c in commit.committed(store)] == [(8, None)]

    resumed = new_model(seed=5)
    backup = BackupAndRestore(store, local_cache=tmp_path)
    history = resumed.fit(new_dataset(), epochs=3, callbacks=[backup, ChiefCheckpoint(store, monitor=None)], verbose=0)
    assert history.epoch == [2]
    assert backup.resumed_from is not None
    assert Path(str(backup.resumed_from.path)).is_relative_to(tmp_path)
    assert [c.step for c in commit.committed(store)] == [12, 8]


def test_unknown_steps_per_epoch_and_every_steps_do_not_go_together(tmp_path: Path, new_model: NewModel) -> None:
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(()), output_signature=(tf.TensorSpec((8, 3)), tf.TensorSpec((8, 1)))
    )
    with pytest.raises(ValueError, match="pass steps_per_epoch to fit"):
        fit(new_model(), dataset, [ChiefCheckpoint(tmp_path, monitor=None, every_steps=2)], epochs=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"keep_last": 0},
        {"mode": "best"},
        {"every_steps": 0},
        {"every_seconds": 0},
        {"retry_seconds": -1},
        {"fence": "without attempt"},
    ],
)
def test_arguments_out_of_range_are_refused_when_built(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ChiefCheckpoint(tmp_path, **arguments)

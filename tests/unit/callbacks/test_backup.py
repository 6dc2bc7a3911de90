"""T6: an interrupted training that is resumed ends with the bits of one that never stopped."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.backup import BackupAndRestore, ResumePoint, restore, restore_weights, resume_point
from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.checkpoints import commit, training_state
from mirrorspark.callbacks.early_stopping import AgreedEarlyStopping
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.unit.training.test_function_rank import Twin

NewModel = Callable[..., tf_keras.Model]
NewDataset = Callable[..., tf.data.Dataset]


class PowerCutError(RuntimeError):
    pass


class PowerCut(tf_keras.callbacks.Callback):
    """Ends training before the given number of steps is exceeded."""

    def __init__(self, after_steps: int) -> None:
        super().__init__()
        self._left = after_steps

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if self._left < 0:
            raise PowerCutError


def all_values(model: tf_keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]


@pytest.fixture(scope="module")
def unbroken(new_model: NewModel, new_dataset: NewDataset) -> list[np.ndarray]:
    """Return the values of weights and optimizer after three epochs without a break."""
    model = new_model(is_rich=True)
    model.fit(new_dataset(), epochs=3, verbose=0)
    return all_values(model)


@pytest.mark.parametrize("cut_after_steps", [pytest.param(5, marks=pytest.mark.full), 11])
def test_a_resumed_training_equals_an_unbroken_one_bit_for_bit(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, unbroken: list[np.ndarray], cut_after_steps: int
) -> None:
    def checkpoint() -> ChiefCheckpoint:
        return ChiefCheckpoint(tmp_path, monitor="loss", mode="min", every_steps=3)

    interrupted = checkpoint()
    with pytest.raises(PowerCutError):
        new_model(is_rich=True).fit(
            new_dataset(), epochs=3, callbacks=[interrupted, PowerCut(cut_after_steps)], verbose=0
        )
    interrupted.wait_until_published()
    point = resume_point(tmp_path)
    # Checkpoints at steps 3, 4, 6, 8, 9 of epochs of four steps; one within an epoch may give way to an epoch's end.
    expected = {5: {(1, 4, 0)}, 11: {(2, 8, 0), (2, 9, 1)}}[cut_after_steps]
    assert (point.epoch, point.step, point.step_in_epoch) in expected

    resumed = new_model(seed=99, is_rich=True)
    backup = BackupAndRestore(tmp_path)
    first_epoch, rest = new_dataset(point.step_in_epoch), new_dataset().repeat()
    resumed.fit(first_epoch.concatenate(rest), epochs=3, steps_per_epoch=4, callbacks=[backup, checkpoint()], verbose=0)

    assert (backup.initial_epoch, backup.initial_step_in_epoch) == (point.epoch, point.step_in_epoch)
    for ours, theirs in zip(all_values(resumed), unbroken, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_without_a_checkpoint_training_starts_at_the_beginning(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    assert resume_point(tmp_path) == ResumePoint(0, 0, 0, None)
    backup = BackupAndRestore(tmp_path / "absent")
    history = new_model().fit(new_dataset(), epochs=2, callbacks=[backup], verbose=0)
    assert history.epoch == [0, 1]
    assert backup.initial_epoch == 0


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, new_model: NewModel, new_dataset: NewDataset
) -> tuple[Path, AgreedEarlyStopping]:
    """Return a store with the checkpoints of steps 4 and 8, and the early stopping that was saved with them."""
    store = tmp_path_factory.mktemp("trained") / "store"
    stopping = AgreedEarlyStopping("loss", mode="min", patience=1)
    checkpoint = ChiefCheckpoint(store, monitor=None, stateful={"stopping": stopping})
    new_model().fit(new_dataset(), epochs=2, callbacks=[stopping, checkpoint], verbose=0)
    return store, stopping


@pytest.fixture
def two_epochs(tmp_path: Path, trained: tuple[Path, AgreedEarlyStopping]) -> tuple[Path, AgreedEarlyStopping]:
    """Return a copy of that store, which may be damaged."""
    return Path(shutil.copytree(trained[0], tmp_path / "store")), trained[1]


def test_fit_goes_on_at_the_epoch_after_and_a_second_fit_is_not_moved(
    two_epochs: tuple[Path, AgreedEarlyStopping], new_model: NewModel, new_dataset: NewDataset
) -> None:
    model = new_model()
    assert model.fit(new_dataset(), epochs=3, callbacks=[BackupAndRestore(two_epochs[0])], verbose=0).epoch == [2]
    assert model.fit(new_dataset(), epochs=1, verbose=0).epoch == [0]


def test_the_state_of_other_callbacks_comes_back(
    two_epochs: tuple[Path, AgreedEarlyStopping], new_model: NewModel, new_dataset: NewDataset
) -> None:
    store, saved = two_epochs
    stopping = AgreedEarlyStopping("loss", mode="min", patience=1)
    backup = BackupAndRestore(store, stateful={"stopping": stopping})
    new_model().fit(new_dataset(), epochs=2, callbacks=[backup, stopping], verbose=0)
    assert stopping.get_state() == saved.get_state()
    assert stopping.best_epoch == 2


def test_a_training_that_had_decided_to_stop_does_not_go_on(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    stopping = AgreedEarlyStopping("loss", mode="min", patience=1, baseline=0.0)
    checkpoint = ChiefCheckpoint(tmp_path, monitor=None, stateful={"stopping": stopping})
    assert new_model().fit(new_dataset(), epochs=5, callbacks=[stopping, checkpoint], verbose=0).epoch == [0]

    again = AgreedEarlyStopping("loss", mode="min", patience=1, baseline=0.0)
    backup = BackupAndRestore(tmp_path, stateful={"stopping": again})
    assert new_model().fit(new_dataset(), epochs=5, callbacks=[backup, again], verbose=0).epoch == []
    assert again.stopped


def test_an_explicit_checkpoint_is_taken_and_refused_when_damaged(
    two_epochs: tuple[Path, AgreedEarlyStopping], new_model: NewModel, new_dataset: NewDataset
) -> None:
    store, _ = two_epochs
    older = store / "step-00000004"
    backup = BackupAndRestore(store, resume_from=older)
    assert new_model().fit(new_dataset(), epochs=2, callbacks=[backup], verbose=0).epoch == [1]
    (older / "ckpt.index").write_bytes(b"")
    with pytest.raises(commit.CheckpointDamagedError, match="0 bytes instead of"):
        new_model().fit(new_dataset(), epochs=2, callbacks=[BackupAndRestore(store, resume_from=older)], verbose=0)


def test_after_damage_training_goes_on_from_the_one_before_and_replaces_it(
    two_epochs: tuple[Path, AgreedEarlyStopping], new_model: NewModel, new_dataset: NewDataset
) -> None:
    store, _ = two_epochs
    (store / "step-00000008" / "ckpt.index").write_bytes(b"")
    callbacks = [BackupAndRestore(store), ChiefCheckpoint(store, monitor=None)]
    assert new_model().fit(new_dataset(), epochs=2, callbacks=callbacks, verbose=0).epoch == [1]
    assert [(c.step, c.damage()) for c in commit.committed(store)] == [(8, None), (4, None)]


def newest(store: Path) -> commit.CommittedCheckpoint:
    checkpoint = commit.latest_committed(store)
    assert checkpoint is not None
    return checkpoint


def test_another_architecture_or_optimizer_is_refused_and_named(
    two_epochs: tuple[Path, AgreedEarlyStopping], new_model: NewModel
) -> None:
    checkpoint = newest(two_epochs[0])
    wider = tf_keras.Sequential([tf_keras.layers.Dense(5, input_shape=(3,)), tf_keras.layers.Dense(1)])
    unbuilt = tf_keras.Sequential([tf_keras.layers.Dense(4), tf_keras.layers.Dense(1)])
    for model in (wider, unbuilt):
        model.compile("adam", "mse")
    with_sgd = new_model(optimizer=tf_keras.optimizers.SGD())
    for model in (wider, unbuilt, with_sgd):
        with pytest.raises(ValueError, match="does not fit this model and optimizer"):
            restore(model, model.optimizer, checkpoint)


@pytest.mark.parametrize("name", ["ckpt.index", "ckpt.data-00000-of-00001"])
def test_files_that_vanish_before_they_are_read_are_damage(
    two_epochs: tuple[Path, AgreedEarlyStopping], new_model: NewModel, name: str
) -> None:
    """T5: a fault of the store, which another attempt may not meet, and not of the model."""
    checkpoint = newest(two_epochs[0])
    (Path(checkpoint.path) / name).unlink()
    model = new_model()
    with pytest.raises(commit.CheckpointDamagedError, match="TensorFlow cannot read it"):
        restore(model, model.optimizer, checkpoint)


def test_a_callback_without_saved_state_is_named(
    two_epochs: tuple[Path, AgreedEarlyStopping], new_model: NewModel
) -> None:
    model = new_model()
    with pytest.raises(ValueError, match=r"has no state for \['other'\]; it has \['stopping'\]"):
        restore(model, model.optimizer, newest(two_epochs[0]), {"other": AgreedEarlyStopping()})


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: tf_keras.optimizers.legacy.Adam(0.01),
        lambda: tf_keras.optimizers.SGD(0.01, momentum=0.9),
        lambda: tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.Adam(0.01)),
        lambda: tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
        lambda: tf_keras.optimizers.Adam(0.01, use_ema=True),
    ],
    ids=["legacy", "momentum", "loss-scale", "schedule", "averages"],
)
def test_every_kind_of_optimizer_comes_back_with_slots_and_iterations(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, optimizer: Callable[[], Any]
) -> None:
    saved = new_model(optimizer=optimizer())
    saved.fit(new_dataset(), callbacks=[ChiefCheckpoint(tmp_path, monitor=None)], verbose=0)
    restored = new_model(seed=2, optimizer=optimizer())
    restore(restored, restored.optimizer, newest(tmp_path))

    def values(model: tf_keras.Model) -> list[np.ndarray]:
        variables = model.optimizer.variables
        return [v.numpy() for v in (variables() if callable(variables) else variables)]

    assert int(restored.optimizer.iterations) == 4
    for a, b in zip(values(saved), values(restored), strict=True):
        np.testing.assert_array_equal(a, b)


def with_averages(kind: Any, seed: int) -> Any:
    kind.utils.set_random_seed(seed)
    model = kind.Sequential([kind.layers.Input((2,)), kind.layers.Dense(1)])
    model.compile(kind.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    return model


ROWS = np.random.default_rng(3).normal(size=(32, 2)).astype(np.float32)


@pytest.mark.parametrize("kind", [tf_keras, keras], ids=["tf-keras", "Keras 3"])
def test_a_model_to_predict_with_has_the_averages_of_its_weights_as_after_fit_of_keras(
    tmp_path: Path, kind: Any
) -> None:
    """#53: a resumed training goes on with the weights themselves."""
    trained, restored, resumed = (with_averages(kind, seed) for seed in (1, 2, 3))
    checkpoint = ChiefCheckpoint(tmp_path, monitor=None)
    trained.fit(ROWS, ROWS.sum(1), epochs=2, batch_size=8, callbacks=[checkpoint], verbose=0)
    restore_weights(restored, newest(tmp_path))
    restore(resumed, resumed.optimizer, newest(tmp_path))
    for averaged, expected, last in zip(*(one.get_weights() for one in (restored, trained, resumed)), strict=True):
        np.testing.assert_array_equal(averaged, expected)
        assert np.abs(last - expected).max() > 1e-3
    for saved, again in zip(*(training_state.averages(one.optimizer) for one in (trained, resumed)), strict=True):
        np.testing.assert_array_equal(again.numpy(), saved.numpy())


def test_averages_of_two_workers_are_those_of_one_process() -> None:
    found = []
    for strategy in (tf.distribute.get_strategy(), RingStrategy(Twin())):  # type: ignore[arg-type]
        data = tf.data.Dataset.from_tensor_slices((ROWS, ROWS.sum(1))).batch(8)
        with strategy.scope():
            model = with_averages(tf_keras, 1)
        model.fit(strategy.distribute_datasets_from_function(lambda _, data=data: data), epochs=2, verbose=0)
        found.append([*model.get_weights(), *(average.numpy() for average in training_state.averages(model.optimizer))])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6)

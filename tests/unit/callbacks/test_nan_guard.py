"""A loss that is not a number ends the training at once, with advice."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.nan_guard import NonFiniteLossError, StopOnNaN

NewModel = Callable[..., tf_keras.Model]


@pytest.fixture
def poisoned(arrays: tuple[np.ndarray, np.ndarray]) -> tf.data.Dataset:
    """Return a dataset whose third batch has a NaN label."""
    features, labels = arrays
    labels = labels.copy()
    labels[17] = math.nan
    return tf.data.Dataset.from_tensor_slices((features, labels)).batch(8)


@pytest.mark.parametrize("every_steps", [1, 2, 100])
def test_the_first_step_without_a_finite_loss_is_named_whenever_it_is_looked_for(
    new_model: NewModel, poisoned: tf.data.Dataset, every_steps: int
) -> None:
    guard = StopOnNaN(every_steps=every_steps, locate=lambda epoch, step: f"rows of epoch {epoch}, step {step}")
    with pytest.raises(NonFiniteLossError, match=r"in epoch 1, first in step 3 \(rows of epoch 0, step 2\)") as caught:
        new_model().fit(poisoned, epochs=2, callbacks=[guard], verbose=0)
    assert (caught.value.epoch, caught.value.step_in_epoch) == (1, 3)
    assert math.isnan(caught.value.value)


def test_a_model_that_was_trained_before_is_watched_too(new_model: NewModel, poisoned: tf.data.Dataset) -> None:
    model = new_model()
    model.fit(poisoned.take(2), verbose=0)
    with pytest.raises(NonFiniteLossError, match="first in step 3"):
        model.fit(poisoned, callbacks=[StopOnNaN()], verbose=0)


def test_weights_spoilt_by_nan_are_not_committed(
    tmp_path: Path, new_model: NewModel, poisoned: tf.data.Dataset
) -> None:
    callbacks = [StopOnNaN(), ChiefCheckpoint(tmp_path, monitor=None)]
    with pytest.raises(NonFiniteLossError):
        new_model().fit(poisoned, callbacks=callbacks, verbose=0)
    assert commit.committed(tmp_path) == []


@pytest.mark.parametrize("every_steps", [1, 2, 3])
def test_a_checkpoint_within_an_epoch_is_from_before_the_first_bad_step(
    tmp_path: Path, new_model: NewModel, poisoned: tf.data.Dataset, every_steps: int
) -> None:
    guard = StopOnNaN(every_steps=100)
    checkpoint = ChiefCheckpoint(tmp_path, monitor=None, keep_last=9, every_steps=every_steps, before_save=guard.check)
    with pytest.raises(NonFiniteLossError, match="loss is nan in epoch 1, first in step 3"):
        new_model().fit(poisoned, callbacks=[guard, checkpoint], verbose=0)
    checkpoint.wait_until_published()
    assert all(c.step < 3 for c in commit.committed(tmp_path))


def without_a_gradient(labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Return a loss of 0 whose gradient is NaN: the root's slope at 0 is infinite."""
    return tf.sqrt(tf.square(predictions - predictions))


def test_weights_that_a_gradient_spoilt_are_not_saved_though_the_loss_is_finite(
    tmp_path: Path, new_model: NewModel, new_dataset: Callable[..., tf.data.Dataset]
) -> None:
    model = new_model()
    model.compile("sgd", without_a_gradient, run_eagerly=True)
    guard = StopOnNaN(locate=lambda epoch, step: f"rows of step {step}")
    checkpoint = ChiefCheckpoint(tmp_path, monitor=None, every_steps=1, before_save=guard.check)
    with pytest.raises(
        NonFiniteLossError, match=r"weight dense.*/kernel:0 is nan in epoch 1, seen in step 1 \(rows of step 0\)"
    ):
        model.fit(new_dataset(), callbacks=[guard, checkpoint], verbose=0)
    assert commit.committed(tmp_path) == []


def test_large_weights_whose_sum_overflows_pass() -> None:
    model = tf_keras.Sequential([tf_keras.layers.Dense(4, dtype="float16", input_shape=(3,))])
    model.set_weights([np.full((3, 4), 60_000, np.float16), np.zeros(4, np.float16)])
    guard = StopOnNaN()
    guard.set_model(model)
    guard.check()
    model.set_weights([np.full((3, 4), -np.inf, np.float16), np.zeros(4, np.float16)])
    with pytest.raises(NonFiniteLossError, match="kernel:0 is -inf"):
        guard.check()


def test_a_store_that_does_not_answer_does_not_hide_the_loss() -> None:
    def locate(epoch: int, step: int) -> str:
        raise OSError("the disk is missing")

    guard = StopOnNaN(every_steps=1, locate=locate)
    guard.on_epoch_begin(0)
    with pytest.raises(NonFiniteLossError, match=r"loss is nan .* the disk is missing"):
        guard.on_train_batch_end(0, {"loss": math.nan})


def test_finite_losses_pass_and_infinity_does_not() -> None:
    guard = StopOnNaN(every_steps=1)
    guard.on_epoch_begin(4)
    guard.on_train_batch_end(0, {"loss": tf.constant(1e30)})
    with pytest.raises(
        NonFiniteLossError, match=r"loss is inf in epoch 5, first in step 2; .* lower the learning rate"
    ):
        guard.on_train_batch_end(1, {"loss": math.inf})


def test_the_error_survives_pickle() -> None:
    error = NonFiniteLossError(3, 12, math.inf, "somewhere")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), again.step_in_epoch) == (NonFiniteLossError, str(error), 12)

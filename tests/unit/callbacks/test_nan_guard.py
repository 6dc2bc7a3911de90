"""A loss that is not a number ends the training at once, with advice."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from callbacks import commit
from callbacks.checkpoint import ChiefCheckpoint
from callbacks.nan_guard import NonFiniteLossError, StopOnNaN

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

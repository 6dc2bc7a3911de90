"""Executions of many steps stay short, so that a slow training can be watched and stopped."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.short_executions import ShortExecutions
from mirrorspark.models.fitting.step_loop import use_step_loop

NewModel = Callable[..., tf_keras.Model]
STEPS = 100
MOST = 50


class Steps(tf_keras.callbacks.Callback):
    """Notes after how many steps of each epoch Keras came back, and after how many of each validation."""

    def __init__(self) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self.trained: list[list[int]] = []
        self.validated: list[list[int]] = []

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.trained.append([])

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.trained[-1].append(batch + 1)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self.validated.append([])

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.validated[-1].append(batch + 1)


class SlowSteps(tf_keras.callbacks.Callback):
    """A clock by which each step of an execution takes some seconds, from a step of the training on."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self._seconds = seconds
        self._now = 0.0
        self._done = 0

    def __call__(self) -> float:
        return self._now

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._begin = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        for _ in range(self._begin, batch + 1):
            self._now += self._seconds(self._done)
            self._done += 1


def rows(steps: int = STEPS) -> tf.data.Dataset:
    random = np.random.default_rng(1)
    return tf.data.Dataset.from_tensor_slices(
        (random.normal(size=(8 * steps, 4)).astype(np.float32), random.integers(0, 2, 8 * steps).astype(np.float32))
    ).batch(8)


def built(**compiled: Any) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(1)])
    model.compile("adam", tf_keras.losses.BinaryCrossentropy(from_logits=True), metrics=["mae"], **compiled)
    return model


def fitted(model: tf_keras.Model, seconds: Callable[[int], float], *, epochs: int = 2, steps: int = STEPS) -> Steps:
    clock, seen = SlowSteps(seconds), Steps()
    # The clock first: callbacks behind it see the time that has passed.
    model.fit(
        rows(steps),
        validation_data=rows(30),
        epochs=epochs,
        callbacks=[clock, ShortExecutions(1.0, clock=clock), seen],
        verbose=0,
    )
    return seen


def test_executions_grow_to_the_most_and_end_where_those_of_the_most_would() -> None:
    seen = fitted(built(steps_per_execution=MOST), lambda step: 0.001)

    assert seen.trained == [[1, 2, 4, 8, 16, 32, 50, 100], [50, 100]]


def test_an_execution_of_slow_steps_has_fewer_of_them() -> None:
    seen = fitted(built(steps_per_execution=MOST), lambda step: 0.3, steps=14)

    assert seen.trained == [[1, 2, 4, 7, 10, 13, 14], [3, 6, 9, 12, 14]]


def test_a_step_that_takes_longer_than_the_time_is_an_execution_of_its_own() -> None:
    seen = fitted(built(steps_per_execution=MOST), lambda step: 60.0, steps=5)

    assert seen.trained == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert [steps[-1] for steps in seen.validated] == [30, 30]


def test_a_training_that_grows_slow_or_fast_is_followed_from_epoch_to_epoch() -> None:
    seen = fitted(built(steps_per_execution=MOST), lambda step: 0.5 if 100 <= step < 200 else 0.001, epochs=3)

    assert seen.trained[0][-3:] == [32, 50, 100]
    assert seen.trained[1][:4] == [50, 52, 54, 56]
    assert seen.trained[2] == [2, 6, 14, 30, 50, 100]


@pytest.mark.parametrize("loop", [use_step_loop, lambda model: None], ids=["our loop", "Keras' loop"])
def test_the_training_is_the_same_one_and_the_model_is_left_as_it_was(loop: Callable[[tf_keras.Model], None]) -> None:
    usual, short = built(steps_per_execution=MOST), built(steps_per_execution=MOST)
    for model in (usual, short):
        loop(model)

    expected = usual.fit(rows(), validation_data=rows(30), epochs=2, verbose=0)
    fitted(short, lambda step: 60.0 if step < STEPS else 0.001)

    assert short.history.history == expected.history
    for mine, theirs in zip(short.get_weights(), usual.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert int(short._steps_per_execution.numpy()) == MOST
    assert short.evaluate(rows(), verbose=0) == usual.evaluate(rows(), verbose=0)


def test_a_time_that_no_execution_can_take_is_refused() -> None:
    with pytest.raises(ValueError, match="seconds is 0; use a number above 0"):
        ShortExecutions(0)

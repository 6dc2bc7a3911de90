"""T2: executions of many steps compute what Keras' own do, with one trace of the step."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.nan_guard import StopOnNaN
from mirrorspark.models.fitting.step_loop import use_step_loop

STEPS, BATCH = 6, 8
History = dict[str, list[float]]


class Net(tf_keras.Sequential):
    """A small net that counts how often Python goes through its steps, which is once per trace."""

    def __init__(self) -> None:
        super().__init__([tf_keras.Input((3,)), tf_keras.layers.Dense(4, "relu"), tf_keras.layers.Dense(1)])
        self.traces = {"train": 0, "test": 0}

    def train_step(self, data: Any) -> dict[str, Any]:
        self.traces["train"] += 1
        return dict(super().train_step(data))

    def test_step(self, data: Any) -> dict[str, Any]:
        self.traces["test"] += 1
        return dict(super().test_step(data))


class TellsMore(Net):
    """Its steps return something that no metric keeps."""

    def train_step(self, data: Any) -> dict[str, Any]:
        return super().train_step(data) | {"positives": tf.reduce_sum(tf.cast(data[1], tf.float32))}


def compiled(net: Callable[[], Net], *, ours: bool, **options: Any) -> Net:
    tf_keras.utils.set_random_seed(1)
    model = net()
    model.compile(
        "adam",
        tf_keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[tf_keras.metrics.AUC(from_logits=True, name="auc")],
        **{"steps_per_execution": 4} | options,
    )
    if ours:
        use_step_loop(model)
    return model


def batches() -> tf.data.Dataset:
    rows = np.random.default_rng(1).normal(size=(BATCH * STEPS, 3)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((rows, rows[:, :1] > 0)).batch(BATCH, drop_remainder=True).repeat()


def fitted(model: Net, *callbacks: tf_keras.callbacks.Callback) -> History:
    """Train for two epochs, of which each has an execution of four steps and one of two."""
    fit = model.fit(
        batches(),
        steps_per_epoch=STEPS,
        validation_data=batches(),
        validation_steps=STEPS,
        epochs=2,
        callbacks=[*callbacks],
        verbose=0,
    )
    history: History = fit.history
    return history


def assert_equal(model: Net, other: Net) -> None:
    for mine, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture(scope="module")
def usual() -> tuple[Net, History]:
    """Return the net and its history after Keras' own loop."""
    model = compiled(Net, ours=False)
    return model, fitted(model)


@pytest.mark.parametrize("callbacks", [list, lambda: [StopOnNaN()]], ids=["alone", "with StopOnNaN"])
def test_one_trace_where_keras_has_four_and_the_same_weights_and_metrics(
    usual: tuple[Net, History], callbacks: Callable[[], list[Any]]
) -> None:
    model = compiled(Net, ours=True)
    history = fitted(model, *callbacks())
    assert usual[0].traces == {"train": 4, "test": 2}, "Keras has changed: what is our loop still good for?"
    assert model.traces == {"train": 1, "test": 1}
    assert history == usual[1]
    assert list(history) == list(usual[1])
    assert_equal(model, usual[0])
    assert model.optimizer.iterations.numpy() == model._train_counter.numpy() == 2 * STEPS
    # A second fit and an evaluation trace nothing again.
    fitted(model)
    model.evaluate(batches(), steps=STEPS, verbose=0)
    assert model.traces == {"train": 1, "test": 1}


def test_logs_contain_values_that_are_no_metrics(usual: tuple[Net, History]) -> None:
    model = compiled(TellsMore, ours=True)
    history = fitted(model)
    *_, (_, last_labels) = batches().take(STEPS)
    assert history.pop("positives") == [np.sum(last_labels)] * 2
    assert history == usual[1]
    assert_equal(model, usual[0])


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 1}, {"jit_compile": True}])
def test_keras_keeps_its_loop(options: dict[str, Any]) -> None:
    model = compiled(Net, ours=True, **options)
    for made in (model.make_train_function(), model.make_test_function()):
        assert made.__module__.startswith(("tf_keras", "tensorflow"))


class Anchored(tf_keras.optimizers.SGD):
    """Remembers the weights with which its variables begin, as an optimizer with an outer step does."""

    def build(self, var_list: Any) -> None:
        super().build(var_list)
        self.anchors = [variable.numpy() for variable in var_list]


def test_the_optimizers_variables_begin_with_the_weights_that_the_training_begins_with() -> None:
    model = Net()
    optimizer = Anchored(0.0)
    model.compile(optimizer, "mse", steps_per_execution=4)
    use_step_loop(model)
    weights = [np.full_like(weight, 0.25) for weight in model.get_weights()]
    model.set_weights(weights)
    fitted(model)
    for anchor, weight in zip(optimizer.anchors, weights, strict=True):
        np.testing.assert_array_equal(anchor, weight)


class InRounds(tf_keras.optimizers.SGD):
    """Keeps count of its rounds of three steps, and of how often it was asked about them."""

    def build(self, var_list: Any) -> None:
        super().build(var_list)
        if not hasattr(self, "made"):
            self.made, self.complete, self.asked = (tf.Variable(0, dtype=tf.int64) for _ in range(3))
            self.is_counting = True

    def apply_gradients(self, *arguments: Any, **more: Any) -> Any:
        result = super().apply_gradients(*arguments, **more)
        if self.is_counting:
            self.count(1)
        return result

    def steps_left(self) -> tf.Tensor:
        return 3 - self.made

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        self.is_counting = False
        yield
        self.is_counting = True

    def count(self, steps: Any) -> None:
        self.asked.assign_add(1)
        made = self.made.assign_add(steps)
        is_complete = tf.cast(made == 3, tf.int64)
        self.complete.assign_add(is_complete)
        self.made.assign(made * (1 - is_complete))


def test_an_optimizer_that_works_in_rounds_is_asked_once_behind_their_steps() -> None:
    def counts(*, ours: bool) -> list[int]:
        model = compiled(Net, ours=ours)
        optimizer = InRounds(0.1)
        model.compile(optimizer, "mse", steps_per_execution=4)
        fitted(model)
        return [int(count.numpy()) for count in (optimizer.complete, optimizer.made, optimizer.asked)]

    # An epoch has an execution of four steps (a round, and one step of the next) and one of two (the rest of it).
    assert counts(ours=True) == [4, 0, 6]
    assert counts(ours=False) == [4, 0, 12]


def test_a_model_whose_weights_come_with_the_first_batch_trains_as_it_does_in_keras() -> None:
    histories = []
    for ours in (False, True):
        tf_keras.utils.set_random_seed(1)
        model = tf_keras.Sequential([tf_keras.layers.Dense(4, "relu"), tf_keras.layers.Dense(1)])
        model.compile(tf_keras.optimizers.legacy.Adam(), "mse", steps_per_execution=4)
        if ours:
            use_step_loop(model)
        histories.append(fitted(model))
        model.compile("adam", "mae", steps_per_execution=4)
        histories.append(fitted(model))
    assert histories[:2] == histories[2:]


def test_an_error_of_a_step_is_told_as_it_is() -> None:
    model = compiled(Net, ours=True)
    with pytest.raises(ValueError, match="incompatible with the layer"):
        model.fit(tf.data.Dataset.from_tensors((np.zeros((2, 5)), np.zeros((2, 1)))).repeat(), steps_per_epoch=4)


class Folding(tf_keras.layers.Layer):
    """A layer with a condition on its values, which only Autograph can put into a graph."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if tf.reduce_mean(inputs) > 0:
            return inputs
        return -inputs


def net_with_a_condition() -> Net:
    import tensorflow as locally_known

    class WithCondition(Net):
        """Names in a step's signature something that is known in this function alone, as our two towers do."""

        def __init__(self) -> None:
            super().__init__()
            self.add(Folding())

        def train_step(self, data: Any) -> dict[str, locally_known.Tensor]:
            return super().train_step(data)

    return WithCondition()


def test_a_step_of_the_models_own_is_not_converted_and_layers_are(caplog: pytest.LogCaptureFixture) -> None:
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        found = fitted(compiled(net_with_a_condition, ours=True))
    finally:
        logger.removeHandler(caplog.handler)

    assert found == fitted(compiled(net_with_a_condition, ours=False))
    assert "AutoGraph" not in caplog.text

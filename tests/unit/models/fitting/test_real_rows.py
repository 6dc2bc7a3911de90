"""Losses and gradients are means over the rows that are not padding: for every label kind, ensembles and own models."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.models.fitting.objectives import ScaledLoss, compile_model
from mirrorspark.models.fitting.optimizers import accumulate_gradients, gathering
from mirrorspark.models.fitting.real_rows import count_real_rows
from mirrorspark.models.fitting.step_loop import use_step_loop
from mirrorspark.models.own_model import keep_compilation

COLUMNS, CLASSES, ROWS = 3, 4, 21
RATE = 0.5
# Task, outputs, members, and the loss of a regression.
CASES = {
    "binary": ("binary", 1, 1, None),
    "multi_class": ("multi_class", CLASSES, 1, None),
    "multi_label": ("multi_label", CLASSES, 1, None),
    "squared": ("regression", 1, 1, ScaledLoss("squared", 2.0)),
    "poisson": ("regression", 1, 1, ScaledLoss("poisson", 2.0)),
    "quantile": ("regression", 2, 1, ScaledLoss("quantile", 2.0, quantiles=(0.1, 0.9))),
    "binary ensemble": ("binary", 1, 3, None),
    "multi_class ensemble": ("multi_class", CLASSES, 3, None),
    "multi_label ensemble": ("multi_label", CLASSES, 3, None),
    "squared ensemble": ("regression", 1, 3, ScaledLoss("squared", 2.0)),
}


def rows(task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels and weights; a row has weight 0 without being padding."""
    rng = np.random.default_rng(4)
    labels = {
        "binary": rng.integers(0, 2, ROWS).astype(np.float32),
        "multi_class": rng.integers(0, CLASSES, ROWS),
        "multi_label": rng.integers(0, 2, (ROWS, CLASSES)).astype(np.float32),
        "regression": rng.poisson(2, ROWS).astype(np.float32),
    }[task]
    weights = rng.uniform(0.5, 2, ROWS).astype(np.float32)
    weights[5] = 0
    return rng.normal(size=(ROWS, COLUMNS)).astype(np.float32), labels, weights


def batches(arrays: Sequence[np.ndarray], size: int) -> list[PaddedBatch]:
    """Return batches of ``size`` rows, the last of which is filled up with zeros."""
    found = []
    for first in range(0, len(arrays[0]), size):
        parts = [array[first : first + size] for array in arrays]
        missing = size - len(parts[0])
        padded = [tf.constant(np.pad(part, [(0, missing), *[(0, 0)] * (part.ndim - 1)])) for part in parts]
        found.append(PaddedBatch(*padded, tf.constant(size / len(parts[0]), tf.float32)))
    return found


def model_of(outputs: int, members: int = 1) -> tf_keras.Model:
    inputs = tf_keras.Input((COLUMNS,))
    hidden = tf_keras.layers.Dense(outputs * members, kernel_initializer=tf_keras.initializers.Constant(0.3))(inputs)
    shape = (members, outputs) if members > 1 else (outputs,)
    model = tf_keras.Model(inputs, tf_keras.layers.Reshape(shape)(hidden))
    model.members = members
    return model


def compiled(case: str, rate: float = RATE) -> tf_keras.Model:
    task, outputs, members, loss = CASES[case]
    model = model_of(outputs, members)
    model.regression_loss = loss
    compile_model(model, task, tf_keras.optimizers.SGD(rate))
    return model


def loss_of(model: tf_keras.Model, given: Sequence[PaddedBatch], step: str = "test_step") -> float:
    """Return the loss of an epoch or of a validation."""
    model.reset_metrics()
    for batch in given:
        getattr(model, step)(batch)
    return float(model.get_metrics_result()["loss"])


@pytest.mark.parametrize(
    "case",
    [
        case if case == "binary ensemble" or "ensemble" not in case else pytest.param(case, marks=pytest.mark.full)
        for case in CASES
    ],
)
def test_losses_and_gradients_are_the_same_for_every_size_of_the_batches(case: str) -> None:
    arrays = rows(CASES[case][0])
    whole = batches(arrays, ROWS)
    expected = loss_of(compiled(case), whole)
    for size in (8, 32):
        assert loss_of(compiled(case), batches(arrays, size)) == pytest.approx(expected, rel=1e-5)
    assert loss_of(compiled(case, rate=0.0), batches(arrays, 8), "train_step") == pytest.approx(expected, rel=1e-5)
    # One batch of 21 rows, and one of 32 in which 11 are padding.
    updated, padded = compiled(case), compiled(case)
    updated.train_step(whole[0])
    padded.train_step(batches(arrays, 32)[0])
    for ours, theirs in zip(padded.get_weights(), updated.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_full_batches_keep_their_bits() -> None:
    """A scale of 1 changes nothing, so models trained in full batches are trained as before."""
    batch = batches(rows("binary"), ROWS)[0]
    ours, keras = compiled("binary"), compiled("binary")
    for _ in range(3):
        ours.train_step(batch)
        keras.train_step((batch.features, batch.label, batch.weight))
    for mine, other in zip(ours.variables, keras.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())


def test_the_last_gradient_and_the_loss_of_an_epoch_are_those_worked_by_hand() -> None:
    """A weight w from 0, squared errors of the labels 4, 2 and 6 in batches of two, a rate of 1/8.

    Step 1: the mean of 16 and 4 is 10, and that of -8 and -4 the gradient, so w becomes 0.75. Step 2, with a row of
    padding: 5.25 ** 2 = 27.5625, gradient -10.5, so w becomes 2.0625. The epoch has (2 * 10 + 27.5625) / 3.
    """
    model = tf_keras.Sequential([tf_keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.build((None, 1))
    model.compile(tf_keras.optimizers.SGD(0.125), loss="mse")
    count_real_rows(model)
    ones = np.ones(3, np.float32)
    given = batches((ones[:, None], np.array([4, 2, 6], np.float32), ones), 2)
    assert loss_of(model, given, "train_step") == pytest.approx(47.5625 / 3)
    assert model.get_weights()[0].item() == pytest.approx(2.0625)


@given(
    losses=st.lists(st.integers(-50, 50), min_size=1, max_size=40),
    size=st.integers(1, 50),
    weighted=st.booleans(),
)
def test_the_loss_of_an_epoch_is_the_mean_over_its_rows(losses: list[int], size: int, weighted: bool) -> None:
    """Any losses in batches of any size; a weight multiplies the loss of its row, which still counts as one."""
    values = np.array(losses, np.float32)
    weights = np.arange(len(losses), dtype=np.float32) % 3 if weighted else np.ones(len(losses), np.float32)
    assert loss_of(plain(), batches((values[:, None], values, weights), size)) == pytest.approx(
        float((values * weights).mean()), rel=1e-4, abs=1e-4
    )


@functools.cache
def plain() -> tf_keras.Model:
    """Return a model whose losses are the labels, and whose step is called without a graph."""
    model = tf_keras.Sequential([tf_keras.layers.Lambda(lambda inputs: inputs)])
    model.build((None, 1))
    model.compile("sgd", loss=lambda labels, _: labels)
    count_real_rows(model)
    return model


@pytest.mark.parametrize("loop", [use_step_loop, lambda model: None], ids=["our loop", "Keras' loop"])
def test_fit_has_the_mean_over_the_rows_in_either_loop(loop: Callable[[Any], None]) -> None:
    arrays = rows("binary")
    expected = loss_of(compiled("binary"), batches(arrays, ROWS))
    given = batches(arrays, 8)
    data = tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *parts: tf.stack(parts), *given))
    model = model_of(1)
    compile_model(model, "binary", tf_keras.optimizers.SGD(0.0), steps_per_execution=2)
    loop(model)
    history = model.fit(data.repeat(), epochs=1, steps_per_epoch=3, validation_data=data, verbose=0).history
    assert [history["loss"], history["val_loss"]] == [[pytest.approx(expected, rel=1e-5)]] * 2


def test_gradients_in_parts_are_those_of_the_rows_that_are_not_padding() -> None:
    batch = batches(rows("binary"), 32)[0]
    whole, in_parts = compiled("binary"), model_of(1)
    compile_model(in_parts, "binary", gathering(tf_keras.optimizers.SGD)(RATE))
    accumulate_gradients(in_parts, 4)
    whole.train_step(batch)
    in_parts.train_step(batch)
    for ours, theirs in zip(in_parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert float(in_parts.get_metrics_result()["loss"]) == pytest.approx(
        float(whole.get_metrics_result()["loss"]), rel=1e-5
    )


def own(*, penalty: float = 0.0, reduction: str = "auto") -> tf_keras.Model:
    """Return a model that its user has compiled, with a penalty of its weights."""
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(
                1,
                "sigmoid",
                kernel_initializer=tf_keras.initializers.Constant(0.3),
                kernel_regularizer=tf_keras.regularizers.L2(penalty),
            )
        ]
    )
    model.build((None, COLUMNS))
    model.compile(tf_keras.optimizers.SGD(RATE), loss=tf_keras.losses.BinaryCrossentropy(reduction=reduction))
    keep_compilation(model, 1)
    return model


@pytest.mark.parametrize(("penalty", "reduction"), [(0.0, "auto"), (0.7, "auto"), (0.0, "sum")])
def test_an_own_model_counts_its_rows_and_its_penalty_once(penalty: float, reduction: str) -> None:
    """The penalty is neither a mean over rows nor a sum: padding changes none of them."""
    arrays = rows("binary")
    whole, padded = (own(penalty=penalty, reduction=reduction) for _ in range(2))
    found = [loss_of(whole, batches(arrays, ROWS), "train_step"), loss_of(padded, batches(arrays, 32), "train_step")]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    for ours, theirs in zip(padded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_each_of_several_outputs_has_the_mean_over_its_rows() -> None:
    inputs = tf_keras.Input((COLUMNS,))
    outputs = [tf_keras.layers.Dense(1, name=name, kernel_initializer="ones")(inputs) for name in ("near", "far")]
    model = tf_keras.Model(inputs, outputs)
    model.compile("sgd", loss=["mse", "mae"], loss_weights=[1.0, 0.5])
    count_real_rows(model)
    features, labels, _ = rows("regression")
    ones, found = np.ones(ROWS, np.float32), []
    for size in (ROWS, 8):
        model.reset_metrics()
        for batch in batches((features, labels, ones), size):
            model.test_step(batch._replace(label=(batch.label, -batch.label)))
        found.append({name: float(value) for name, value in model.get_metrics_result().items()})
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert set(found[0]) == {"loss", "near_loss", "far_loss"}


class InAFunction(tf_keras.Model):
    """An own model whose step is a function of TensorFlow within that of ``fit``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = tf_keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.head(inputs)

    @tf.function
    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        return dict(super().train_step(data))


@pytest.mark.parametrize(
    "loop",
    [use_step_loop, pytest.param(lambda model: None, marks=pytest.mark.full)],
    ids=["our loop", "Keras' loop"],
)
def test_a_step_of_the_users_own_may_be_a_function_of_tensorflow(loop: Callable[[Any], None]) -> None:
    arrays = rows("regression")
    data = tf.data.Dataset.from_tensor_slices(
        tf.nest.map_structure(lambda *parts: tf.stack(parts), *batches(arrays, 8))
    )
    model = InAFunction()
    model(tf.zeros((1, COLUMNS)))
    model.compile(tf_keras.optimizers.SGD(0.0), loss="mse", steps_per_execution=3)
    count_real_rows(model)
    loop(model)
    found = model.fit(data.repeat(), epochs=2, steps_per_epoch=3, verbose=0).history["loss"]
    features, labels, weights = arrays
    expected = float((weights * (features.sum(axis=1) - labels) ** 2).mean())
    assert found == [pytest.approx(expected, rel=1e-5)] * 2

"""Optimizers by name: schedules worked by hand, clipping, and gradients gathered over parts of a batch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.models.fitting.optimizers import (
    DistinctSlices,
    OptimizerSettings,
    WarmUpAndDecay,
    accumulate_gradients,
    build_optimizer,
    gathering,
)
from mirrorspark.models.fitting.xla import compile_with_xla
from mirrorspark.models.settings import ModelSettingsError


def rates(schedule: WarmUpAndDecay, steps: list[int]) -> list[float]:
    return [float(schedule(step)) for step in steps]


def test_a_constant_rate_stays_and_is_no_variable_that_a_checkpoint_would_bring_back() -> None:
    optimizer = build_optimizer(OptimizerSettings("sgd", 0.25))
    assert rates(optimizer._learning_rate, [0, 7, 10_000]) == [0.25] * 3
    weight = tf.Variable(1.0)
    optimizer.apply_gradients([(tf.constant(2.0), weight)])
    assert weight.numpy() == 0.5


def test_a_warm_up_rises_by_equal_parts() -> None:
    schedule = WarmUpAndDecay(0.8, "constant", warmup_steps=4)
    assert rates(schedule, [0, 1, 2, 3, 4, 99]) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_a_linear_decay_ends_at_zero() -> None:
    schedule = WarmUpAndDecay(1.0, "linear", warmup_steps=2, total_steps=10)
    assert rates(schedule, [2, 4, 6, 10, 11]) == pytest.approx([1.0, 0.75, 0.5, 0.0, 0.0])


def test_a_cosine_decay_is_half_way_down_in_the_middle() -> None:
    schedule = WarmUpAndDecay(1.0, "cosine", total_steps=8)
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    assert rates(schedule, [0, 2, 4, 8]) == pytest.approx([1.0, quarter, 0.5, 0.0])


def test_steps_of_another_size_go_on_where_the_schedule_was() -> None:
    # Half of 10 steps are done; the other half are 10 steps of half the size, of which the whole would have 20.
    before = WarmUpAndDecay(1.0, "linear", total_steps=10)
    after = WarmUpAndDecay(1.0, "linear", total_steps=20, start_step=5, start_share=0.5)
    assert rates(after, [5, 10, 15]) == pytest.approx([*rates(before, [5]), 0.25, 0.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_ends_before_its_warm_up_is_refused(schedule: str) -> None:
    with pytest.raises(ModelSettingsError, match="10 steps ends before its warm-up of 10; use fewer"):
        OptimizerSettings(schedule=schedule, warmup_steps=10, total_steps=10)  # type: ignore[arg-type]


def test_unknown_names_are_told_with_those_that_are_known() -> None:
    with pytest.raises(
        ModelSettingsError,
        match=r"optimizer 'adamax' is unknown .did you mean 'adam'.*use one of \['adagrad', 'adam', 'adamw'",
    ):
        OptimizerSettings("adamax")
    with pytest.raises(ModelSettingsError, match="schedule 'step' is unknown"):
        OptimizerSettings(schedule="step")  # type: ignore[arg-type]


def test_gradients_are_clipped_by_their_length_together() -> None:
    optimizer = build_optimizer(OptimizerSettings("sgd", 1.0, clip_norm=1.0))
    one, other = tf.Variable(0.0), tf.Variable(0.0)
    optimizer.apply_gradients([(tf.constant(3.0), one), (tf.constant(4.0), other)])
    assert [one.numpy(), other.numpy()] == pytest.approx([-0.6, -0.8])


def test_lazy_adam_leaves_the_rows_alone_that_a_batch_has_not_read() -> None:
    """A table of ones: two rows of the first batch, one of them again and a third in the second one."""
    optimizer, table = build_optimizer(OptimizerSettings("lazy_adam", 0.1)), tf.Variable(tf.ones([4, 1]))
    expected = np.ones(4)
    moments = np.zeros((2, 4))
    for step, gradients in enumerate(({0: 3.0, 2: -1.0}, {2: 0.5, 3: 2.0}), start=1):
        # A row that is named twice has the sum.
        rows = [*gradients, *gradients]
        values = [[part / 2] for part in gradients.values()] * 2
        optimizer.apply_gradients([(tf.IndexedSlices(tf.constant(values), tf.constant(rows), (4, 1)), table)])
        for row, gradient in gradients.items():
            moments[:, row] = moments[:, row] * [0.9, 0.999] + [0.1 * gradient, 0.001 * gradient**2]
            mean, square = moments[:, row] / [1 - 0.9**step, 1 - 0.999**step]
            expected[row] -= 0.1 * mean / math.sqrt(square)
        np.testing.assert_allclose(table[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "of_keras", "tolerance"),
    [
        ("adagrad", tf_keras.optimizers.Adagrad, 0.0),
        ("adam", tf_keras.optimizers.Adam, 2e-5),
        ("adamw", tf_keras.optimizers.AdamW, 2e-5),
    ],
)
@pytest.mark.parametrize("is_sparse", [True, False])
def test_our_faster_optimizers_are_those_of_keras(
    name: str, of_keras: Callable[[float], Any], tolerance: float, is_sparse: bool
) -> None:
    """AdaGrad bit for bit; of Adam, ``1 - beta_2`` is rounded to float32, which changes it by a hundred-thousandth."""
    trained = []
    for optimizer in (build_optimizer(OptimizerSettings(name, 0.1)), of_keras(0.1)):
        table = tf.Variable(tf.random.stateless_uniform((6, 3), (1, 2)))
        for seed in range(5):
            values = tf.random.stateless_normal((6, 3), (seed, 3))
            rows = tf.random.stateless_uniform((6,), (seed, 4), 0, 6, tf.int64)  # some of them twice
            optimizer.apply_gradients([(tf.IndexedSlices(values, rows, (6, 3)) if is_sparse else values, table)])
        state = {variable.name: variable.numpy() for variable in optimizer.variables if variable.shape.rank}
        trained.append({"table": table.numpy(), **state})
    ours, theirs = trained
    assert [*ours] == [*theirs]  # a checkpoint of one is one of the other
    for variable, values in ours.items():
        np.testing.assert_allclose(values, theirs[variable], rtol=tolerance, atol=tolerance / 5, err_msg=variable)


@pytest.mark.parametrize("name", ["adam", "lazy_adam", "adagrad"])
def test_rows_that_are_named_once_are_not_searched_for_duplicates(name: str) -> None:
    def operations(kind: type[tf.IndexedSlices]) -> set[str]:
        table, optimizer = tf.Variable(tf.ones([4, 1])), build_optimizer(OptimizerSettings(name))
        optimizer.build([table])
        gradient = kind(tf.ones([2, 1]), tf.constant([0, 2]), tf.constant([4, 1]))
        step = tf.function(lambda: optimizer.apply_gradients([(gradient, table)]))
        return {operation.type for operation in step.get_concrete_function().graph.get_operations()}

    assert {"Unique", "UnsortedSegmentSum"} <= operations(tf.IndexedSlices) - operations(DistinctSlices)


def test_lazy_adam_is_adam_where_gradients_are_dense() -> None:
    trained = []
    for name in ("adam", "lazy_adam"):
        optimizer, weight = build_optimizer(OptimizerSettings(name, 0.1)), tf.Variable([1.0, -2.0])
        for gradient in ([0.3, 0.0], [-2.0, 1.0]):
            optimizer.apply_gradients([(tf.constant(gradient), weight)])
        trained.append([variable.numpy() for variable in (weight, *optimizer.variables)])
    for adam, lazy in zip(*trained, strict=True):
        np.testing.assert_array_equal(lazy, adam)


def model() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(3)
    tokens = tf_keras.Input((), dtype=tf.int64)
    numbers = tf_keras.Input((4,))
    hidden = tf_keras.layers.Concatenate()([tf_keras.layers.Embedding(50, 3)(tokens), numbers])
    return tf_keras.Model([tokens, numbers], tf_keras.layers.Dense(1)(hidden))


def rows() -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 50, 24), rng.normal(size=(24, 4)).astype(np.float32)], rng.normal(size=(24, 1))


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_makes_the_update_of_the_whole_batch(parts: int) -> None:
    """SGD is used, since its updates have the length of their gradients."""
    whole, in_parts = model(), model()
    for trained, rules in ((whole, ()), (in_parts, (gathering,))):
        trained.compile(build_optimizer(OptimizerSettings("sgd", 0.5), *rules), loss="mse")
    accumulate_gradients(in_parts, parts)
    inputs, labels = rows()
    for trained in (whole, in_parts):
        trained.fit(inputs, labels, batch_size=24, epochs=3, verbose=0)
    for ours, theirs in zip(in_parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert int(in_parts.optimizer.iterations) == 3


def test_xla_compiles_the_model_and_changes_nothing() -> None:
    plain, compiled = model(), model()
    for trained in (plain, compiled):
        trained.compile(build_optimizer(OptimizerSettings("sgd", 0.5)), loss="mse")
    compile_with_xla(compiled)
    inputs, labels = rows()
    for trained in (plain, compiled):
        trained.fit(inputs, labels, batch_size=24, epochs=2, verbose=0)
    for ours, theirs in zip(compiled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    example = [tf.constant(column) for column in inputs]
    assert "HloModule" in compiled.call.experimental_get_compiler_ir(example, training=None, mask=None)(stage="hlo")

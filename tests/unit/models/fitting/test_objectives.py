"""Losses and metrics against NumPy (F8), and the arguments with which a task is compiled."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.models.fitting.objectives import ScaledLoss, compile_model, multi_label_log_loss
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer


def model() -> tf_keras.Model:
    return tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(2,))])


def test_multi_label_log_loss_by_hand() -> None:
    # Logit 0 is probability 1/2, logit log(3) is 3/4: -(log(1/2) + log(3/4)) / 2 and -(log(1/2) + log(1/4)) / 2.
    logits = tf.constant([[0.0, np.log(3.0)], [0.0, np.log(3.0)]], tf.float32)
    losses = multi_label_log_loss(tf.constant([[1, 1], [0, 0]]), logits)
    assert losses.numpy() == pytest.approx([0.5 * np.log(8 / 3), 0.5 * np.log(8)], rel=1e-6)


def test_multi_label_log_loss_equals_numpy() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, (40, 7))
    logits = rng.normal(scale=3, size=(40, 7)).astype(np.float32)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -np.mean(labels * np.log(probability) + (1 - labels) * np.log(1 - probability), axis=1)
    losses = multi_label_log_loss(tf.constant(labels), tf.constant(logits))
    assert losses.shape == (40,)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_multi_label_log_loss_stays_finite_where_a_probability_is_0_or_1() -> None:
    losses = multi_label_log_loss(tf.constant([[1.0, 0.0]]), tf.constant([[-200.0, -200.0]]))
    assert losses.numpy().tolist() == [100.0]


@pytest.mark.parametrize("task", ["multi_label", "multi_class"])
def test_padding_does_not_change_what_a_model_of_several_classes_reports(task: str) -> None:
    tf_keras.utils.set_random_seed(1)
    compiled = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(2,))])
    compile_model(compiled, task, build_optimizer(OptimizerSettings("sgd", 0.1)))
    rng = np.random.default_rng(3)
    features = rng.normal(size=(50, 2)).astype(np.float32)
    shape = (50, 3) if task == "multi_label" else (50,)
    labels = rng.integers(0, 2, shape).astype(np.float32 if task == "multi_label" else np.int64)
    plain = compiled.evaluate(features, labels, sample_weight=np.ones(50, np.float32), verbose=0, return_dict=True)
    padded = compiled.evaluate(
        np.concatenate([features, np.full((14, 2), 9, np.float32)]),
        np.concatenate([labels, np.ones((14, *shape[1:]), labels.dtype)]),
        sample_weight=np.repeat([1.0, 0.0], [50, 14]).astype(np.float32),
        verbose=0,
        return_dict=True,
    )
    other = "auc" if task == "multi_label" else "accuracy"
    assert set(plain) == {"loss", "log_loss", other}
    assert [padded["log_loss"], padded[other]] == pytest.approx([plain["log_loss"], plain[other]], rel=1e-5)


def test_padding_does_not_change_what_a_binary_model_reports() -> None:
    tf_keras.utils.set_random_seed(1)
    compiled = model()
    compile_model(compiled, "binary", build_optimizer(OptimizerSettings("sgd", 0.1)))
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(50, 2)).astype(np.float32), rng.integers(0, 2, 50).astype(np.float32)
    plain = compiled.evaluate(features, labels, sample_weight=np.ones(50, np.float32), verbose=0, return_dict=True)
    padded = compiled.evaluate(
        np.concatenate([features, np.full((14, 2), 9, np.float32)]),
        np.concatenate([labels, np.ones(14, np.float32)]),
        sample_weight=np.repeat([1.0, 0.0], [50, 14]).astype(np.float32),
        verbose=0,
        return_dict=True,
    )
    assert set(plain) == {"loss", "log_loss", "auc"}
    assert [padded["log_loss"], padded["auc"]] == pytest.approx([plain["log_loss"], plain["auc"]], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "best"),
    [("squared", "mean"), ("absolute", "median"), ("poisson", "mean"), ("tweedie", "mean")],
    ids=["squared", "absolute", "poisson", "tweedie"],
)
def test_the_loss_of_a_regression_is_least_at_its_statistic_in_any_unit(kind: str, best: str) -> None:
    labels = np.array([1.0, 2.0, 2.0, 3.0, 40.0], np.float32)
    for scale in (1.0, 250.0):
        loss = ScaledLoss(kind, scale)
        guesses = np.linspace(0.5, 12, 116)
        losses = [float(loss(labels * scale, np.full((5, 1), guess * scale, np.float32))) for guess in guesses]
        assert guesses[int(np.argmin(losses))] == pytest.approx(getattr(np, best)(labels), abs=0.06)


def test_the_loss_of_quantiles_is_least_where_so_many_labels_are_below() -> None:
    labels = np.arange(1.0, 102.0, dtype=np.float32)
    guesses = np.arange(0.5, 103.0, dtype=np.float32)
    for share, best in ((0.1, 11), (0.5, 51), (0.9, 91)):
        loss = ScaledLoss("quantile", 3.0, quantiles=(share, 0.5, 0.9))
        # The other two columns add the same to each.
        columns = [np.stack([np.full(101, guess), labels, labels], axis=1) for guess in guesses]
        losses = [float(loss(labels, column)) for column in columns]
        assert guesses[int(np.argmin(losses))] == pytest.approx(best, abs=1)
    one, other = np.array([3.0], np.float32), np.array([[7.0]], np.float32)
    assert float(ScaledLoss("quantile", 2.0, quantiles=(0.5,))(one, other)) == pytest.approx(2.0)


def test_padding_changes_neither_error_of_a_regression() -> None:
    tf_keras.utils.set_random_seed(1)
    compiled = model()
    compiled.regression_loss = ScaledLoss("squared", 2.0)
    compile_model(compiled, "regression", build_optimizer(OptimizerSettings("sgd", 0.1)))
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(50, 2)).astype(np.float32), rng.normal(size=50).astype(np.float32)
    padded = compiled.evaluate(
        np.concatenate([features, np.full((14, 2), 9, np.float32)]),
        np.concatenate([labels, np.ones(14, np.float32)]),
        sample_weight=np.repeat([1.0, 0.0], [50, 14]).astype(np.float32),
        verbose=0,
        return_dict=True,
    )
    errors = compiled.predict(features, verbose=0)[:, 0] - labels
    assert padded["rmse"] == pytest.approx(float(np.sqrt(np.mean(errors**2))), rel=1e-5)
    assert padded["mae"] == pytest.approx(float(np.mean(np.abs(errors))), rel=1e-5)


def test_an_unknown_task_is_named() -> None:
    known = (
        r"task 'ranking' is unknown; use one of \['binary', 'multi_class', 'multi_label', 'regression', 'retrieval'\]"
    )
    with pytest.raises(ValueError, match=known):
        compile_model(model(), "ranking", build_optimizer(OptimizerSettings()))
